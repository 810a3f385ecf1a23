"""Inventory of a store: its objects, its runs, and which run uses which object."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ..choices import Grouping
from ..coordination.claim_keys import parse_claim_key
from ..coordination.claims import is_alive, read_claim
from ..errors import CorruptObjectError, ObjectNotFoundError, StoreError
from ..formats.store_folders import CLAIMS, PROBES, RUNS, STORE_MARKER
from ..storage.backends.protocol import ObjectInfo
from ..storage.store import Store
from .kinds import kind_of
from .run_folder import RUN_NAME
from .runs import read_run, read_run_objects

# "unrecorded": a folder below runs/ without run.json, or an active run that has not written it yet
State = Literal["running", "finished", "unfinished", "damaged", "unrecorded"]

NO_RUN = "(no run)"
_OTHER_KIND = "other"
_PARALLEL_READS = 8


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run of a store.

    facts : content of run.json; empty where that is damaged or missing
    objects : the keys that the run uses outside of its own folder, whether they exist or not; None where unknown
    folder : the keys below runs/<its key>/
    written : when run.json was last written, in seconds on the store's clock
    """

    key: str
    state: State
    facts: Mapping[str, Any]
    objects: frozenset[str] | None
    folder: tuple[str, ...]
    written: float

    @property
    def method(self) -> str:
        return str(self.facts.get("method", "?"))

    @property
    def models(self) -> list[str]:
        """Names of the base, if there is one, and of the experts."""
        base = self.facts.get("base")
        return [*([base] if base else []), *self.facts.get("experts", [])]

    @property
    def keys(self) -> frozenset[str]:
        """Every key that the run is known to use, its own folder included."""
        return frozenset((*(self.objects or ()), *self.folder))


@dataclass(frozen=True, slots=True)
class Inventory:
    """The content of a store at one moment, without its marker.

    claimed_parts : keys of the parts that a process is making
    dead_claims : keys of claims that no process refreshes any more
    now : seconds on the store's clock
    """

    objects: Mapping[str, ObjectInfo]
    runs: tuple[StoredRun, ...]
    claimed_parts: frozenset[str]
    dead_claims: frozenset[str]
    now: float

    def users(self) -> dict[str, list[StoredRun]]:
        """Return the runs that use each object, by the object's key."""
        users: dict[str, list[StoredRun]] = {key: [] for key in self.objects}
        for run in self.runs:
            for key in run.keys & users.keys():
                users[key].append(run)
        return users

    def size(self, keys: Iterable[str]) -> int:
        """Return how many bytes these objects have together."""
        return sum(self.objects[key].size for key in keys)


@dataclass(frozen=True, slots=True)
class Usage:
    """Size of the objects of one kind, run, method or model. `own_bytes`: of those that belong to no other row."""

    name: str
    num_objects: int
    num_bytes: int
    own_bytes: int


def take_inventory(store: Store, now: float | None = None) -> Inventory:
    """List all objects and read all records of runs and all claims.

    Cost: one listing of the store, two small reads for each run and one for each claim.

    Parameters
    ----------
    now : seconds on the store's clock (`store_clock`); by default this machine's, which is sufficient for display
    """
    objects = {info.key: info for info in store.list("") if info.key != STORE_MARKER}
    return _read_runs_and_claims(store, objects, time.time() if now is None else now)


def reread_runs(store: Store, inventory: Inventory) -> Inventory:
    """Return the inventory with runs/ and claims/ listed and read again; other folders are reused."""
    changing = (RUNS, CLAIMS)
    objects = {key: info for key, info in inventory.objects.items() if not key.startswith(changing)}
    objects |= {info.key: info for folder in changing for info in store.list(folder)}
    return _read_runs_and_claims(store, objects, inventory.now)


def store_clock(store: Store) -> float:
    """Return the time that the store gives to an object written now, so that ages do not compare two clocks."""
    key = f"{PROBES}{uuid.uuid4().hex}"
    store.write(key, b"")
    try:
        return store.info(key).modified or time.time()
    finally:
        with contextlib.suppress(StoreError):
            store.delete([key])


def usage(inventory: Inventory, grouping: Grouping) -> list[Usage]:
    """Return sizes by kind, run, method or model, largest first; objects of no run come last, in a row of their own."""
    users = inventory.users()

    def row_names(key: str) -> list[str]:
        if grouping == "kind":
            kind = kind_of(key)
            return [kind.group if kind is not None else _OTHER_KIND]
        names = {name for run in users[key] for name in _ROW_NAMES[grouping](run)}
        return sorted(names) or [NO_RUN]

    rows: dict[str, list[int]] = {}
    for key, info in inventory.objects.items():
        names = row_names(key)
        for name in names:
            row = rows.setdefault(name, [0, 0, 0])
            row[0] += 1
            row[1] += info.size
            row[2] += info.size if len(names) == 1 else 0
    return sorted(
        (Usage(name, *row) for name, row in rows.items()),
        key=lambda row: (row.name == NO_RUN, -row.num_bytes, row.name),
    )


_ROW_NAMES: Mapping[str, Callable[[StoredRun], list[str]]] = {
    "run": lambda run: [run.key],
    "method": lambda run: [run.method],
    "model": lambda run: run.models,
}


def _read_runs_and_claims(store: Store, objects: Mapping[str, ObjectInfo], now: float) -> Inventory:
    active_runs: set[str] = set()
    claimed_parts: set[str] = set()
    dead_claims: set[str] = set()
    claims = [key for key in objects if key.startswith(CLAIMS) and kind_of(key) is not None]
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="inventory") as pool:
        for key, content in zip(claims, pool.map(partial(_read_or_none, store), claims), strict=True):
            if content is None or not is_alive(content, now - objects[key].modified):
                dead_claims.add(key)
                continue
            subject = parse_claim_key(key)
            if subject.part_key is not None:
                claimed_parts.add(subject.part_key)
            if subject.run_key is not None:
                active_runs.add(subject.run_key)
        folders: dict[str, list[ObjectInfo]] = {}
        for key, info in objects.items():
            if key.startswith(RUNS) and kind_of(key) is not None:
                folders.setdefault(key.split("/")[1], []).append(info)
        # A run takes its claim before it writes its folder.
        run_keys = sorted({*folders, *active_runs})

        def read_run_of(key: str) -> StoredRun:
            return _read_stored_run(store, key, folders.get(key, []), key in active_runs, claimed_parts)

        runs = tuple(pool.map(read_run_of, run_keys))
    return Inventory(objects, runs, frozenset(claimed_parts), frozenset(dead_claims), now)


def _read_stored_run(
    store: Store, key: str, folder: Sequence[ObjectInfo], is_active: bool, claimed_parts: set[str]
) -> StoredRun:
    names = tuple(info.key for info in folder)
    record = f"{RUNS}{key}/{RUN_NAME}"
    written = max((info.modified for info in folder if info.key == record or record not in names), default=0.0)
    facts: Mapping[str, Any] = {}
    objects: frozenset[str] | None = None
    state: State
    try:
        objects = read_run_objects(store, key)
        facts = read_run(store, key)
        state = "finished" if facts.get("finished") else "unfinished"
    except ObjectNotFoundError:
        state = "unrecorded"
    except CorruptObjectError:
        state = "damaged"
    if is_active or (objects is not None and not claimed_parts.isdisjoint(objects)):
        state = "running"
    return StoredRun(key, state, facts, objects, names, written)


def _read_or_none(store: Store, key: str) -> bytes | None:
    try:
        return read_claim(store, key)
    except ObjectNotFoundError:
        return None
