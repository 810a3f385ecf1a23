"""Start the command in a new process, wait for a condition, and find the processes that remain."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from eigenmerge.core.coordination.claim_keys import claim_key
from eigenmerge.core.coordination.claims import ClaimWatcher
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.open_run import open_run
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.storage.store import Store

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


@contextmanager
def last_shard_claimed(recipe: Path, place: Path) -> Iterator[None]:
    """Hold the claim on the last shard of a merge, as a run on another machine does that computes this shard.

    A merge with this store cannot finish meanwhile. A test that stops a merge in its middle needs this: on a slow
    machine all shards of a small model are finished before the signal arrives.
    """
    run = open_run(make_plan(read_recipe(str(recipe))), Store(str(place)), None)
    claim = ClaimWatcher(run.store, claim_key(run.jobs()[-1].shard.part_key)).acquire()
    assert claim is not None
    with claim:
        yield
