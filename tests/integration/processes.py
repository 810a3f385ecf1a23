"""Start the command in a new process, wait for a condition, and find the processes that remain."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

# Limits against a hang, not measurements: beside other work on two cores the start of a command and its first shards
# took more than 90 s, which take 6 s on an idle machine.
START_SECONDS = 300.0
END_SECONDS = 200.0

COMMAND = str(Path(sys.executable).parent / "eigenmerge")


def start(arguments: Sequence[str | Path], server: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command; `options` are those of Popen."""
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
    """Wait for the condition; fail after `seconds`, or if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        assert process.poll() is None, ("the process ended before the condition was met", process.communicate())
        time.sleep(0.005)


def num_parts(store: Path) -> int:
    """Return the number of finished shards in a local store."""
    return len(list(store.glob("parts/*.json")))


def running_processes(group: int) -> list[str]:
    """Return the running processes of a group, without zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(str(process))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
