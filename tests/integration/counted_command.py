"""The `eigenmerge` command with a log of the decompositions that it starts. Run as a script.

    counted_command.py LOG ARGUMENTS...     runs the command once, as the installed command does
    counted_command.py                      imports everything once, then forks a process for each line of its input

The second form saves the time of the imports in each of many runs. A line of input is JSON. For {"start": [ARGUMENTS],
"log": PATH, "env": {...}, "out": PATH} it prints the id of the new process; for {"wait": PID} the exit status, negative
for a signal. The forked process runs the same code as the command, and SIGKILL ends it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def count_decompositions(log: str) -> None:
    """Append the key of every decomposition that starts from now on, in a single write, which a kill cannot split."""
    from eigenmerge.core.cache.spectra.cache import SpectrumCache

    original = SpectrumCache._compute
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def counted(self: SpectrumCache, key: str, *rest: object) -> object:
        os.write(descriptor, f"{os.getpid()} {key}\n".encode())
        return original(self, key, *rest)  # pyright: ignore[reportArgumentType]

    SpectrumCache._compute = counted  # pyright: ignore[reportAttributeAccessIssue]


def run(log: str, arguments: list[str]) -> int:
    from eigenmerge.deployments.cli.app import main

    count_decompositions(log)
    sys.argv = ["eigenmerge", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def start(line: dict[str, object]) -> int:
    """Fork, run the command in the child with its own environment, home and output, and return the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        environment = line["env"]
        assert isinstance(environment, dict)
        os.environ.update(environment)
        output = os.open(str(line["out"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)

        # Prefect read its settings when it was imported, with the home of the parent process.
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
        arguments = line["start"]
        assert isinstance(arguments, list)
        status = run(str(line["log"]), arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    from eigenmerge.deployments.prefect_settings import quiet_prefect

    quiet_prefect()
    import aiobotocore.session  # noqa: F401
    import s3fs  # noqa: F401

    import eigenmerge.deployments.cli.app
    import eigenmerge.deployments.embedded_server
    import eigenmerge.flows.merge  # noqa: F401
    from eigenmerge.core.numerics.registry import get_method

    get_method("swudi_a")
    for text in sys.stdin:
        line = json.loads(text)
        if "start" in line:
            print(start(line), flush=True)
        else:
            _, status = os.waitpid(line["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(run(sys.argv[1], sys.argv[2:]))
    serve()
