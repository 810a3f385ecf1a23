"""The command in processes of its own: started, waited for, and looked for after its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

COMMAND = str(Path(sys.executable).parent / "eigenmerge")


def start(arguments: Sequence[str | Path], server: str, **options: Any) -> subprocess.Popen[str]:
    """`options` as Popen's."""
    environment = {**os.environ, "PREFECT_API_URL": server, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_until(condition: Callable[[], bool], seconds: float, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        assert process.poll() is None, ("the merge ended before", process.communicate())
        time.sleep(0.005)


def num_parts(store: Path) -> int:
    """Finished shards in a local store."""
    return len(list(store.glob("parts/*.json")))


def living(group: int) -> list[str]:
    """Processes of a group, without those that only wait to be asked for their exit code."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(str(process))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
