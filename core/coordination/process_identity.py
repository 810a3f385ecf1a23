"""Identity of a process on this machine, to recognize that the owner of a claim is dead."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import cast

# The fields of a claim that name its owner.
OWNER_FIELDS = ("id", "host", "boot", "pid", "started")

# `started` is the difference of two times that the system clock may move between the two reads.
_CLOCK_TOLERANCE_SECONDS = 1.0


def this_process() -> dict[str, object]:
    """Return the owner fields of a new claim of this process; `id` differs for every claim."""
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot_and_namespace(),
        "pid": os.getpid(),
        "started": _seconds_from_boot_to_start(os.getpid()),
    }


def is_this_process(owner: Mapping[str, object]) -> bool:
    """Return whether the claim's owner, given by its owner fields, is this process.

    Raises
    ------
    TypeError, ValueError, OverflowError : a field does not have the type that `this_process` gives it
    """
    return _is_on_this_machine(owner) and _pid(owner) == os.getpid() and _is_running(owner)


def is_certainly_dead(owner: Mapping[str, object]) -> bool:
    """Return True only for a process of this machine, this boot and this container that does not exist any more.

    A claim written by an earlier version has another form of `boot`. It counts as one of another machine: alive until
    it is stale. An earlier version treats a claim of this version in the same way.

    Raises
    ------
    TypeError, ValueError, OverflowError : as `is_this_process`
    """
    return _is_on_this_machine(owner) and not _is_running(owner)


def _is_on_this_machine(owner: Mapping[str, object]) -> bool:
    boot = _boot_and_namespace()
    return bool(boot) and (owner["host"], owner["boot"]) == (socket.gethostname(), boot)


def _is_running(owner: Mapping[str, object]) -> bool:
    """Return whether the process exists, and is not a later one to which the system gave the same pid."""
    started = owner["started"]
    if not isinstance(started, int | float):
        raise TypeError(f"started is {started!r}, expected seconds")
    found = _seconds_from_boot_to_start(_pid(owner))
    return found is not None and abs(found - started) <= _CLOCK_TOLERANCE_SECONDS


def _pid(owner: Mapping[str, object]) -> int:
    return int(cast("int", owner["pid"]))


def _boot_and_namespace() -> str:
    """Identify this boot of the kernel and this namespace of process ids; "" where that is not possible.

    psutil has neither: its boot time moves with the system clock, and two containers may use one pid for two processes.
    """
    if sys.platform != "linux":
        import psutil

        return f"{sys.platform} {psutil.boot_time():.0f}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"linux {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _seconds_from_boot_to_start(pid: int) -> float | None:
    """Return when a process started, None where it does not exist or has ended and waits for its parent (a zombie).

    Counted from the boot, because a correction of the system clock moves both times alike.
    """
    import psutil  # 40 ms, and only a claim needs it

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round(process.create_time() - psutil.boot_time(), 2)
    except psutil.NoSuchProcess:
        return None
