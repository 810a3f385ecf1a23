"""Identity of processes: only a process that has certainly ended is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from eigenmerge.core.coordination import process_identity
from eigenmerge.core.coordination.process_identity import (
    OWNER_FIELDS,
    is_certainly_dead,
    is_this_process,
    this_process,
)

PRINT_IDENTITY = (
    "import json, sys; from eigenmerge.core.coordination.process_identity import this_process;"
    " print(json.dumps(this_process()), flush=True); sys.stdin.read()"
)


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Another live process of this machine, and its identity; it ends when its input is closed."""
    process = subprocess.Popen([sys.executable, "-c", PRINT_IDENTITY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    yield process, json.loads(process.stdout.readline())
    process.stdin.close()
    process.stdout.close()
    process.kill()
    process.wait()


def test_this_process() -> None:
    owner = this_process()
    assert tuple(owner) == OWNER_FIELDS
    assert is_this_process(owner) and not is_certainly_dead(owner)
    assert is_this_process(json.loads(json.dumps(owner)))
    assert this_process()["id"] != owner["id"]


def test_another_live_process(other: tuple[subprocess.Popen[bytes], dict[str, Any]]) -> None:
    _, owner = other
    assert not is_this_process(owner) and not is_certainly_dead(owner)


def test_a_process_that_has_ended(other: tuple[subprocess.Popen[bytes], dict[str, Any]]) -> None:
    process, owner = other
    process.kill()
    deadline = time.monotonic() + 10
    while not is_certainly_dead(owner):  # a zombie: nobody has waited for it yet
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert psutil.pid_exists(process.pid)
    process.wait()
    assert is_certainly_dead(owner)


def test_a_pid_that_was_given_to_a_later_process() -> None:
    owner = this_process()
    assert isinstance(owner["started"], float)
    earlier = owner | {"started": owner["started"] - 60}
    assert is_certainly_dead(earlier) and not is_this_process(earlier)


def test_a_correction_of_the_system_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = this_process()
    boot = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + 3600)  # both times are read through it
    assert psutil.boot_time() == boot + 3600
    assert is_this_process(owner) and not is_certainly_dead(owner)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere"},
        {"boot": "linux another pid:[1]"},
        {"boot": ""},
        {"host": "elsewhere", "started": "0"},
    ],
    ids=str,
)
def test_processes_of_other_machines_are_never_certainly_dead(changes: dict[str, object]) -> None:
    owner = this_process() | {"pid": 2**22 + 1} | changes
    assert not is_certainly_dead(owner) and not is_this_process(owner)


def test_claims_of_earlier_versions_are_those_of_another_machine() -> None:
    """They name the boot in another form and count `started` in clock ticks."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").readlink()
    owner = this_process() | {"boot": f"{boot} {namespace}", "started": "12345", "pid": 2**22 + 1}
    assert not is_certainly_dead(owner) and not is_this_process(owner)


@pytest.mark.parametrize(
    ("field", "value"), [("pid", "none"), ("pid", None), ("pid", -1), ("started", "0"), ("started", None)]
)
def test_fields_of_another_type(field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        is_certainly_dead(this_process() | {field: value})


def test_a_pid_that_no_system_has() -> None:
    assert is_certainly_dead(this_process() | {"pid": 2**70})


def test_without_proc_nothing_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> str:
        raise PermissionError(str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    owner = this_process() | {"pid": 2**22 + 1}
    assert owner["boot"] == "" and not is_certainly_dead(owner)


def test_on_other_systems_the_time_of_the_boot_identifies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    owner = this_process()
    assert owner["boot"] == f"darwin {psutil.boot_time():.0f}" and owner["pid"] == os.getpid()
    assert is_this_process(owner)
    assert is_certainly_dead(owner | {"pid": 2**22 + 1})


def hide(pid: int) -> Callable[[int], list[str]]:
    real = process_identity._stat
    return lambda asked: [] if asked == pid else real(asked)


def test_a_process_that_this_user_may_not_see_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc mounted with hidepid shows nothing of it, and a signal to it is refused."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = this_process() | {"pid": process.pid, "started": process_identity._start_time(process.pid)}
        monkeypatch.setattr(process_identity, "_stat", hide(process.pid))

        def refuse(pid: int, number: int) -> None:
            raise PermissionError

        assert not is_certainly_dead(owner)
        monkeypatch.setattr(os, "kill", refuse)
        assert not is_certainly_dead(owner)
        process.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_process_of_another_user_is_alive() -> None:
    code = """
import json, os, sys
from eigenmerge.core.coordination.process_identity import is_certainly_dead
owner = json.loads(sys.argv[1])
os.setuid(65534)
try:
    os.kill(owner["pid"], 0)
except PermissionError:
    sys.exit(is_certainly_dead(owner))
"""
    owner = json.dumps(this_process())
    assert subprocess.run([sys.executable, "-c", code, owner], timeout=60).returncode == 0
