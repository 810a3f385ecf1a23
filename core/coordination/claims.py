"""Who works on a shard: so that two runs on one store share the work instead of doing it twice.

A claim is an advisory object, created only if absent. It never guards correctness (parts are content-addressed and
written whole; two workers at one shard write the same bytes), only effort. A claim counts as dead when its owner is a
process of this machine that is gone, or when it did not change for `STALE_SECONDS` of the observer's own clock: no two
clocks are ever compared. Where the store ignores conditional writes, both runs do the work and the result is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from types import TracebackType

from ..errors import ObjectNotFoundError, StoreError
from ..storage.store import Store

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
POLL_SECONDS = 1.0


_RUN_CLAIM = "run-"


def claim_key(part_key: str) -> str:
    return "claims/" + part_key.rsplit("/", 1)[-1].removesuffix(".safetensors") + ".json"


def hold_run(store: Store, run_key: str) -> Claim:
    """Say that this process is at this run, until `release`; any number of processes may be."""
    owner = _this_process()
    key = f"claims/{_RUN_CLAIM}{run_key}-{str(owner['id'])[:12]}.json"
    store.write(key, _body(owner, 0))
    return Claim(store, key, owner)


def claimed(claim: str) -> tuple[str | None, str]:
    """What a claim is about: the run's key (None for a part's), and the part's key ("" for a run's)."""
    name = claim.rpartition("/")[2].removesuffix(".json")
    if name.startswith(_RUN_CLAIM):
        return name.removeprefix(_RUN_CLAIM).rpartition("-")[0], ""
    return None, f"parts/{name.removesuffix('-spectra').removesuffix('.safetensors')}.safetensors"


class ClaimedElsewhere(Exception):
    """Another run, or another worker of this one, is at this shard."""


class Claim:
    """A held claim, refreshed by a thread until `release`. Use as a context manager.

    is_lost : somebody else has taken it, because this process stood still for too long
    """

    def __init__(self, store: Store, key: str, owner: dict[str, object]) -> None:
        self._store, self._key, self._owner = store, key, owner
        self.is_lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name=_thread_name(owner), daemon=True)
        self._thread.start()

    def _refresh(self) -> None:
        beat = 0
        while not self._done.wait(HEARTBEAT_SECONDS):
            beat += 1
            try:
                if not self.check():
                    return
                self._store.write(self._key, _body(self._owner, beat))
            except StoreError:
                continue  # advisory: the shard's own writes will say what is wrong

    def check(self) -> bool:
        """Look whether it is still ours."""
        with contextlib.suppress(ObjectNotFoundError):
            self.is_lost = self.is_lost or _id_of(self._store.read(self._key)) != self._owner["id"]
        return not self.is_lost

    def release(self) -> None:
        """Take the claim away."""
        self._done.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # it goes stale by itself
            if self.check():
                self._store.delete([self._key])

    def abandon(self) -> None:
        """Leave the object with the facts that it was made with, and nobody as its owner."""
        self._done.set()
        self._thread.join()
        with contextlib.suppress(StoreError):
            if self.check():
                left = {name: fact for name, fact in self._owner.items() if name not in _THIS_PROCESS}
                self._store.write(self._key, json.dumps(left).encode())

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_alive(content: bytes, seconds_since_written: float) -> bool:
    """Whether somebody may still be at work. Several missed heartbeats are needed to say no, or a process that is gone.

    seconds_since_written : on one clock, that of the store
    """
    return not _owner_is_gone(content) and seconds_since_written < 5 * STALE_SECONDS


class ClaimWatcher:
    """Tries to take a claim, and remembers how long a foreign one has not moved.

    Parameters
    ----------
    key : of the claim; `claim_key` of a part
    facts : what the claim says beside its owner
    """

    def __init__(self, store: Store, key: str, facts: Mapping[str, object] | None = None) -> None:
        self._store = store
        self._key = key
        self._facts = dict(facts or {})
        self._seen: bytes | None = None
        self._seen_at = 0.0
        self.has_moved = False

    def acquire(self) -> Claim | None:
        """The claim, or None while somebody else is alive and at it."""
        owner = self._facts | _this_process()
        if self._store.create(self._key, _body(owner, 0)):
            return Claim(self._store, self._key, owner)
        try:
            content = self._store.read(self._key)
        except ObjectNotFoundError:
            return None  # released this moment; the next look finds the part
        if content != self._seen:
            self.has_moved = self._seen is not None
            self._seen, self._seen_at = content, time.monotonic()
        unmoved = time.monotonic() - self._seen_at
        if unmoved > STALE_SECONDS or _owner_is_gone(content, second_look=unmoved > POLL_SECONDS):
            self._store.write(self._key, _body(owner, 0))
            return Claim(self._store, self._key, owner)
        return None


_THIS_PROCESS = ("id", "host", "boot", "pid", "started")


def _body(owner: dict[str, object], beat: int) -> bytes:
    return json.dumps(owner | {"beat": beat}).encode()


def _this_process() -> dict[str, object]:
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
    }


def _id_of(content: bytes) -> object:
    try:
        return json.loads(content)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _owner_is_gone(content: bytes, second_look: bool = False) -> bool:
    """True only where it is certain: same machine, same boot, and that process is not there any more. Or it is this
    process, and no thread of it refreshes the claim: a run ended and could not take it away, on a full disk say.

    second_look : the claim stood there a while ago too. Between the object and its thread there is a moment
    """
    try:
        owner = json.loads(content)
        host, boot, pid, started, _ = (owner[name] for name in ("host", "boot", "pid", "started", "beat"))
        same_machine = host == socket.gethostname() and boot == _boot_id()
        if same_machine and pid == os.getpid() and started == _process_start(pid):
            return second_look and all(thread.name != _thread_name(owner) for thread in threading.enumerate())
        return bool(same_machine and boot) and _process_start(int(pid)) != started
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return True  # damaged: nobody can be refreshing it


def _thread_name(owner: Mapping[str, object]) -> str:
    return f"eigenmerge-claim {owner['id']}"


def _boot_id() -> str:
    """Identifies this boot of this kernel and this container: a pid and its start time then name a process.

    "" where there is no /proc.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot, "" when it does not exist."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        return ""
