"""What lies in a store, and which run it belongs to."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from ..coordination.claims import claimed, is_alive
from ..errors import CorruptObjectError, ObjectNotFoundError, StoreError
from ..storage.backends.protocol import ObjectInfo
from ..storage.store import Store
from .layout import ALIGNMENTS, CLAIMS, PARTS, PROBES, RUNS, SPECTRA, SUMS
from .runs import RUN_NAME, read_run, read_run_objects

# "unrecorded": a folder below runs/ without the record of a run
State = Literal["running", "finished", "unfinished", "damaged", "unrecorded"]
Grouping = Literal["kind", "run", "method", "model"]

_PARALLEL_READS = 8
_KINDS: Mapping[str, str] = {
    SPECTRA: "spectra",
    SUMS: "sums",
    PARTS: "parts",
    ALIGNMENTS: "alignments",
    RUNS: "runs",
    CLAIMS: "claims",
    PROBES: "probes",
}
NO_RUN = "(no run)"


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One run as its record tells it.

    facts : of run.json; empty where that is damaged or not there
    objects : keys that it uses, there or not; its own folder is not among them; None where that is not known
    folder : keys below runs/<its key>/
    written : when its record was last written, in seconds on the store's clock
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
        base = self.facts.get("base")
        return [*([base] if base else []), *self.facts.get("experts", [])]


@dataclass(frozen=True, slots=True)
class Inventory:
    """A store at one moment.

    claimed_parts : keys of parts that somebody is making; dead_claims : claims that nobody refreshes any more
    now : on the store's clock
    """

    objects: Mapping[str, ObjectInfo]
    runs: tuple[StoredRun, ...]
    claimed_parts: frozenset[str]
    dead_claims: frozenset[str]
    now: float

    def users(self) -> dict[str, list[StoredRun]]:
        """Key of every object to the runs that use it."""
        found: dict[str, list[StoredRun]] = {key: [] for key in self.objects}
        for run in self.runs:
            for key in {*(run.objects or ()), *run.folder}:
                if key in found:
                    found[key].append(run)
        return found

    def size(self, keys: Iterable[str]) -> int:
        return sum(self.objects[key].size for key in keys)


@dataclass(frozen=True, slots=True)
class Usage:
    """The objects of one kind, run, method or model. `own_bytes`: of those that no other row has."""

    name: str
    num_objects: int
    num_bytes: int
    own_bytes: int


def take_inventory(store: Store, now: float | None = None) -> Inventory:
    """List everything and read the records of all runs.

    Cost: one list of the store, two small reads a run, one a claim.

    Parameters
    ----------
    now : seconds on the store's clock (`store_clock`); by default this machine's, which is good enough to look at
    """
    objects = {info.key: info for info in store.list("")}
    return _with_runs(store, objects, time.time() if now is None else now)


def look_again(store: Store, inventory: Inventory) -> Inventory:
    """The same with runs and claims as they are now: quick, however much the store holds."""
    changing = (RUNS, CLAIMS)
    objects = {key: info for key, info in inventory.objects.items() if not key.startswith(changing)}
    objects |= {info.key: info for folder in changing for info in store.list(folder)}
    return _with_runs(store, objects, inventory.now)


def _with_runs(store: Store, objects: Mapping[str, ObjectInfo], now: float) -> Inventory:
    alive: set[str] = set()
    parts: set[str] = set()
    dead: set[str] = set()
    claims = [key for key in objects if key.startswith(CLAIMS)]
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="inventory") as pool:
        for key, content in zip(claims, pool.map(lambda key: _read(store, key), claims), strict=True):
            if content is None or not is_alive(content, now - objects[key].modified):
                dead.add(key)
                continue
            run_key, part_key = claimed(key)
            if run_key is None:
                parts.add(part_key)
            else:
                alive.add(run_key)
        folders: dict[str, list[ObjectInfo]] = {}
        for key, info in objects.items():
            if key.startswith(RUNS) and key.count("/") >= 2:
                folders.setdefault(key.split("/")[1], []).append(info)
        # A run that has begun this moment holds its claim and has no folder yet.
        keys = sorted({*folders, *alive})
        runs = tuple(pool.map(lambda key: _stored_run(store, key, folders.get(key, []), key in alive, parts), keys))
    return Inventory(objects, runs, frozenset(parts), frozenset(dead), now)


def store_clock(store: Store) -> float:
    """Now, in the time that the store stamps on objects: two machines' clocks are never compared."""
    key = f"{PROBES}{uuid.uuid4().hex}"
    store.write(key, b"")
    try:
        return store.info(key).modified or time.time()
    finally:
        with contextlib.suppress(StoreError):
            store.delete([key])


def usage(inventory: Inventory, grouping: Grouping) -> list[Usage]:
    """Sizes by kind, run, method or model, the largest first; what no run uses comes last under its own name."""
    users = inventory.users()

    def names_of(key: str) -> list[str]:
        if grouping == "kind":
            return [kind_of(key)]
        found = {name for run in users[key] for name in _NAMES[grouping](run)}
        return sorted(found) or [NO_RUN]

    rows: dict[str, list[int]] = {}
    for key, info in inventory.objects.items():
        names = names_of(key)
        for name in names:
            row = rows.setdefault(name, [0, 0, 0])
            row[0] += 1
            row[1] += info.size
            row[2] += info.size if len(names) == 1 else 0
    return sorted(
        (Usage(name, *row) for name, row in rows.items()),
        key=lambda row: (row.name == NO_RUN, -row.num_bytes, row.name),
    )


def kind_of(key: str) -> str:
    """What an object is, by its name."""
    return _KINDS.get(key.partition("/")[0] + "/", "other")


_NAMES: Mapping[str, Callable[[StoredRun], list[str]]] = {
    "run": lambda run: [run.key],
    "method": lambda run: [run.method],
    "model": lambda run: run.models,
}


def _stored_run(store: Store, key: str, folder: Sequence[ObjectInfo], alive: bool, parts: set[str]) -> StoredRun:
    names = tuple(info.key for info in folder)
    record = f"{RUNS}{key}/{RUN_NAME}"
    written = max((info.modified for info in folder if info.key == record or record not in names), default=0.0)
    facts: Mapping[str, Any] = {}
    used: frozenset[str] | None = None
    state: State
    try:
        used = read_run_objects(store, key)
        facts = read_run(store, key)
        state = "finished" if facts.get("finished") else "unfinished"
    except ObjectNotFoundError:
        state = "unrecorded"
    except CorruptObjectError:
        state = "damaged"
    if alive or (used is not None and not parts.isdisjoint(used)):
        state = "running"
    return StoredRun(key, state, facts, used, names, written)


def _read(store: Store, key: str) -> bytes | None:
    try:
        return store.read(key)
    except ObjectNotFoundError:
        return None
