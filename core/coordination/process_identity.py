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

_START_FIELD = 19  # of /proc/<pid>/stat, counted from the state of the process


def this_process() -> dict[str, object]:
    """Return the owner fields of a new claim of this process; `id` differs for every claim."""
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot_and_namespace(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
    }


def is_this_process(owner: Mapping[str, object]) -> bool:
    """Return whether the claim's owner, given by its owner fields, is this process.

    Raises
    ------
    TypeError, ValueError, OverflowError : a field does not have the type that `this_process` gives it
    """
    here = _is_on_this_machine(owner) and _pid(owner) == os.getpid()
    return here and _started(owner) == _start_time(os.getpid())


def is_certainly_dead(owner: Mapping[str, object]) -> bool:
    """Return True only for a process of this machine, this boot and this container that does not exist any more.

    In every other case the owner may be alive, and its claim is taken only when its heartbeat is too old: a process of
    another machine with the same name, of another container, or one that this user may not see.

    A claim written by an earlier version has another form of `boot` or `started`, and counts as one of another machine.
    An earlier version treats a claim of this version in the same way.

    Raises
    ------
    TypeError, ValueError, OverflowError : as `is_this_process`
    """
    if not _is_on_this_machine(owner):
        return False
    pid, started = _pid(owner), _started(owner)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # OverflowError: a number that no process has
        return True
    except PermissionError:  # a process of another user
        pass
    found = _start_time(pid)
    if found is None:  # it exists, and this user may not see when it started (a /proc with hidepid)
        return False
    return found != started or _is_zombie(pid)


def _is_on_this_machine(owner: Mapping[str, object]) -> bool:
    boot = _boot_and_namespace()
    return bool(boot) and (owner["host"], owner["boot"]) == (socket.gethostname(), boot)


def _started(owner: Mapping[str, object]) -> float:
    started = owner["started"]
    if not isinstance(started, int | float):
        raise TypeError(f"started is {started!r}, expected a number")
    return started


def _pid(owner: Mapping[str, object]) -> int:
    pid = int(cast("int", owner["pid"]))
    if pid <= 0:  # os.kill takes these for groups of processes
        raise ValueError(f"pid is {pid}, expected a positive number")
    return pid


def _boot_and_namespace() -> str:
    """Identify this boot of the kernel and this namespace of process ids; "" where that is not possible.

    Two containers may use one pid for two processes, and two machines may have one host name. psutil has neither a boot
    id nor namespaces.
    """
    if sys.platform != "linux":
        import psutil

        return f"{sys.platform} {psutil.boot_time():.0f}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        clock = Path("/proc/self/ns/time")  # start times are counted in it; older kernels have none
        return f"linux/2 {boot} {Path('/proc/self/ns/pid').readlink()} {clock.readlink() if clock.exists() else ''}"
    except OSError:
        return ""


def _start_time(pid: int) -> float | None:
    """Return when a process started, None where that cannot be seen.

    On Linux in the kernel's ticks since the boot, which no correction of the system clock moves. psutil has it as a
    time of the day only.
    """
    if sys.platform == "linux":
        fields = _stat(pid)
        return float(fields[_START_FIELD]) if fields else None
    import psutil  # 40 ms, and only a claim needs it

    try:
        return round(psutil.Process(pid).create_time() - psutil.boot_time(), 0)
    except psutil.Error:
        return None


def _is_zombie(pid: int) -> bool:
    """Return whether a process has ended and waits for its parent."""
    if sys.platform == "linux":
        fields = _stat(pid)
        return bool(fields) and fields[0] in ("Z", "X")
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat after the name of the program; empty where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
