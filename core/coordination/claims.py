"""Claims: objects in a store that mark a shard or a run as active, so that two runs share the work.

A claim is advisory: it saves effort and never protects a result. Parts are written whole under a key made from their
inputs, so two processes on one shard write the same bytes. A claim is dead when its owner was a process of this machine
that has ended, or when its content did not change for `STALE_SECONDS` on the observer's clock; clocks of two machines
are never compared. Where the store ignores conditional writes, both processes may compute the shard.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import TypeVar, cast

from ..errors import ObjectNotFoundError, StoreError
from ..storage.store import Store
from .claim_keys import run_claim_key
from .process_identity import OWNER_FIELDS, is_certainly_dead, is_this_process, this_process
from .stop import StopSignal

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
POLL_SECONDS = 1.0
# An inventory reads a claim once and cannot watch it, so it allows for more missed heartbeats.
_STALE_AT_FIRST_READ_SECONDS = 300.0
_LONGEST_CLAIM_BYTES = 64 * 2**10

Found = TypeVar("Found")


class ClaimedElsewhere(Exception):
    """Another run, or another worker of this run, works on the shard."""


@contextlib.contextmanager
def claimed_shard(
    store: Store,
    key: str,
    *,
    stop: StopSignal,
    wait: bool = True,
    find: Callable[[], Found | None] | None = None,
) -> Generator[Found | None, None, None]:
    """Hold the claim `key` while the block runs, unless `find` returns a result first.

    Yields the result of `find`, or None while the claim is held and there is no result::

        with claimed_shard(store, claim_key(shard.part_key), stop=stop, find=find) as found:
            if found is not None:
                return found
            ...

    Parameters
    ----------
    key : `claim_key` or `spectra_claim_key` of the shard's part
    wait : whether to wait while another process holds the claim
    find : looks for the finished result; called before each attempt to take the claim

    Raises
    ------
    InterruptedRunError : `stop` was set
    ClaimedElsewhere : another process holds the claim, and `wait` is False
    """
    watcher = ClaimWatcher(store, key)
    waited = False
    while True:
        stop.check()
        found = find() if find is not None else None
        if found is not None:
            yield found
            return
        claim = watcher.acquire()
        if claim is not None:
            break
        if not wait:
            raise ClaimedElsewhere
        waited = True
        time.sleep(POLL_SECONDS)
    with claim:
        # The other process may have finished after `find` and before `acquire`.
        yield find() if find is not None and waited else None


def hold_run(store: Store, run_key: str) -> Claim:
    """Mark the run as active in this process until `release`. Several processes may hold it."""
    owner = this_process()
    key = run_claim_key(run_key, str(owner["id"]))
    store.write(key, _body(owner, 0))
    return Claim(store, key, owner)


class Claim:
    """A held claim, rewritten by a thread every `HEARTBEAT_SECONDS` until `release`. A context manager.

    is_lost : another process took the claim, because this one was suspended for longer than `STALE_SECONDS`
    """

    def __init__(self, store: Store, key: str, owner: Mapping[str, object]) -> None:
        self._store, self._key, self._owner = store, key, owner
        self.is_lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name=_thread_name(owner), daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Read the claim and return whether this process still holds it."""
        with contextlib.suppress(ObjectNotFoundError):
            self.is_lost = self.is_lost or _read_id(read_claim(self._store, self._key)) != self._owner["id"]
        return not self.is_lost

    def release(self) -> None:
        """Delete the claim."""
        self._stop_heartbeats()
        with contextlib.suppress(StoreError):  # a claim that cannot be deleted becomes stale
            if self.check():
                self._store.delete([self._key])

    def abandon(self) -> None:
        """Keep the object with the facts that `ClaimWatcher` was given, without an owner: any process may take it."""
        self._stop_heartbeats()
        with contextlib.suppress(StoreError):
            if self.check():
                facts = {name: fact for name, fact in self._owner.items() if name not in OWNER_FIELDS}
                self._store.write(self._key, json.dumps(facts).encode())

    def _send_heartbeats(self) -> None:
        beat = 0
        while not self._released.wait(HEARTBEAT_SECONDS):
            beat += 1
            try:
                if not self.check():
                    return
                self._store.write(self._key, _body(self._owner, beat))
            except StoreError:
                continue  # if the store stays unreachable, writing the part fails with a better message

    def _stop_heartbeats(self) -> None:
        self._released.set()
        self._thread.join()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ClaimWatcher:
    """Tries to take a claim, and measures for how long another process has not refreshed it.

    has_moved : the claim was seen with two different contents, so its owner is alive

    Parameters
    ----------
    key : of the claim
    facts : stored in the claim beside its owner
    """

    def __init__(self, store: Store, key: str, facts: Mapping[str, object] | None = None) -> None:
        self._store = store
        self._key = key
        self._facts = dict(facts or {})
        self._content: bytes | None = None
        self._unchanged_since = 0.0
        self.has_moved = False

    def acquire(self) -> Claim | None:
        """Return the claim, or None while another live process holds it."""
        owner = {**self._facts, **this_process()}
        if self._store.create(self._key, _body(owner, 0)):
            return Claim(self._store, self._key, owner)
        try:
            content = read_claim(self._store, self._key)
        except ObjectNotFoundError:
            return None  # just released: the caller looks for the result before it tries again
        if content != self._content:
            self.has_moved = self._content is not None
            self._content, self._unchanged_since = content, time.monotonic()
        unchanged = time.monotonic() - self._unchanged_since
        if unchanged > STALE_SECONDS or _is_dead(content, second_poll=unchanged > POLL_SECONDS):
            self._store.write(self._key, _body(owner, 0))
            return Claim(self._store, self._key, owner)
        return None


def read_claim(store: Store, key: str) -> bytes:
    """Return the content of a claim. Of an object that is longer than any claim the beginning, which is no claim.

    Raises
    ------
    ObjectNotFoundError : no such object
    """
    return store.read_head(key, _LONGEST_CLAIM_BYTES)[0]


def is_claim(content: bytes) -> bool:
    """Return whether this is the content of a claim, held or abandoned, rather than of another file."""
    try:
        found = _parse(content)
    except (ValueError, TypeError, RecursionError):
        return False
    return found.keys() >= {*OWNER_FIELDS, "beat"}


def is_alive(content: bytes, seconds_since_written: float) -> bool:
    """Return whether the owner of a claim may still be alive.

    Parameters
    ----------
    content : of the claim object
    seconds_since_written : by the store's clock
    """
    return not _is_dead(content) and seconds_since_written < _STALE_AT_FIRST_READ_SECONDS


def _is_dead(content: bytes, second_poll: bool = False) -> bool:
    """Return True only where it is certain that no thread of any process refreshes the claim.

    second_poll : the claim had this content at an earlier poll too. A claim of this very process is dead when no
        heartbeat thread belongs to it: a run could not delete it, for example on a full disk. That is decided on the
        second poll, because the claim object exists slightly before its heartbeat thread.
    """
    try:
        owner = _parse(content)
        if not {*OWNER_FIELDS, "beat"} <= owner.keys():
            return True  # abandoned, or not written by a claim
        if is_this_process(owner):
            return second_poll and all(thread.name != _thread_name(owner) for thread in threading.enumerate())
        return is_certainly_dead(owner)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return True  # damaged: no process refreshes such content


def _parse(content: bytes) -> Mapping[str, object]:
    found: object = json.loads(content)
    if not isinstance(found, dict):
        raise TypeError("a claim is a JSON object")
    return cast("dict[str, object]", found)


def _read_id(content: bytes) -> object:
    try:
        return _parse(content)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _body(owner: Mapping[str, object], beat: int) -> bytes:
    return json.dumps({**owner, "beat": beat}).encode()


def _thread_name(owner: Mapping[str, object]) -> str:
    return f"eigenmerge-claim {owner['id']}"
