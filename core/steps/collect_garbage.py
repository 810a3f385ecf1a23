"""What may be removed from a store, and its removal. Never what a living run claims, or another kept run uses.

Everything in a store can be computed again, so a mistake here costs time and never a result. A run that begins while
objects are being deleted finds that they are gone and makes them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache.inventory import Inventory, StoredRun, look_again, store_clock, take_inventory
from ..cache.layout import CLAIMS, PROBES, RUNS
from ..cache.runs import RUN_NAME
from ..errors import StoreError
from ..storage.store import Store

_SHORTEST_RUN_PREFIX = 4
# On S3 a living upload looks like a dead one; no upload takes a day.
_SURELY_ABANDONED_SECONDS = 86400.0
_YOUNG_SECONDS = 3600.0  # a probe of the store may be at work


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a collection removes.

    keys : in the order of deletion: what says that something is whole goes before it, the record of a run last
    runs : whose records go too; kept_running : runs that would have gone if nobody were at work on them
    """

    keys: tuple[str, ...]
    runs: tuple[str, ...]
    num_bytes: int
    kept_running: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or would do. `num_abandoned` is None in a dry run: only removing them counts them."""

    runs: tuple[str, ...]
    num_objects: int
    num_bytes: int
    num_abandoned: int | None
    kept_running: tuple[str, ...]
    dry_run: bool


def collect_garbage(
    store: Store,
    *,
    older_than: float | None = None,
    runs: Sequence[str] = (),
    superseded: bool = False,
    dry_run: bool = False,
) -> Collected:
    """Remove runs, what only they use, and what killed writers left.

    Parameters
    ----------
    older_than : seconds; runs whose record was not written for that long, and objects of that age that no run uses
    runs : keys, or unambiguous beginnings of keys, of runs to remove whatever their age
    superseded : remove sums over experts that a larger set contains; a run that used them has its result already
    dry_run : look only

    Raises
    ------
    StoreError : no such run; it is at work
    """
    inventory = take_inventory(store, store_clock(store))
    named = [_named(inventory, prefix) for prefix in runs]
    useless: frozenset[str] = frozenset()
    if superseded:
        from ..cache.superseded import superseded_sums

        useless = superseded_sums(store, inventory)
    if not dry_run:
        inventory = look_again(store, inventory)  # somebody may have begun while a million objects were listed
    garbage = find_garbage(inventory, older_than=older_than, runs=named, useless=useless)
    if dry_run:
        return Collected(garbage.runs, len(garbage.keys), garbage.num_bytes, None, garbage.kept_running, dry_run=True)
    store.delete(garbage.keys)
    abandoned_after = 0.0 if store.is_local else max(older_than or 0.0, _SURELY_ABANDONED_SECONDS)
    abandoned = store.remove_abandoned(abandoned_after)
    return Collected(garbage.runs, len(garbage.keys), garbage.num_bytes, abandoned, garbage.kept_running, dry_run=False)


def find_garbage(
    inventory: Inventory, *, older_than: float | None, runs: Sequence[str], useless: frozenset[str] = frozenset()
) -> Garbage:
    """What may go; pure.

    Parameters
    ----------
    useless : keys that may go although a kept run names them, as long as it is not running

    Raises
    ------
    StoreError : a run of `runs` is at work
    """

    def is_old(modified: float) -> bool:
        # A store that does not say when an object was written is not believed to say that it is old.
        return older_than is not None and modified > 0 and inventory.now - modified > older_than

    running = [run for run in inventory.runs if run.state == "running"]
    for run in running:
        if run.key in runs:
            raise StoreError(f"run {run.key[:12]} is at work; stop it first, or wait until it has finished")
    gone = {run.key for run in inventory.runs if run.state != "running" and (run.key in runs or is_old(run.written))}
    kept = [run for run in inventory.runs if run.key not in gone]
    used = {key for run in inventory.runs for key in _names(run)}
    in_work = {*inventory.claimed_parts, *(key for run in running for key in _names(run))}
    protected = in_work | {key for run in kept for key in _names(run) if key not in useless}
    # A living run of which it is not known what it uses might use anything.
    blind = any(run.objects is None for run in running)

    def may_go(key: str) -> bool:
        if key in protected:
            return False
        modified = inventory.objects[key].modified
        if key.startswith(CLAIMS):
            return key in inventory.dead_claims
        if key.startswith(PROBES):
            return 0 < modified < inventory.now - _YOUNG_SECONDS
        return not blind and (key in used or key in useless or is_old(modified))

    keys = sorted((key for key in inventory.objects if may_go(key)), key=_order)
    late = tuple(run.key for run in running if is_old(run.written))
    return Garbage(tuple(keys), tuple(sorted(gone)), inventory.size(keys), late)


def _names(run: StoredRun) -> tuple[str, ...]:
    return (*(run.objects or ()), *run.folder)


def _order(key: str) -> tuple[int, str]:
    """Records of parts before the parts, records of runs after everything: a kill in between leaves nothing unnamed."""
    if key.startswith(RUNS):
        return (3 if key.endswith(f"/{RUN_NAME}") else 2), key
    return (0 if key.endswith(".json") else 1), key


def _named(inventory: Inventory, prefix: str) -> str:
    found = [run.key for run in inventory.runs if run.key.startswith(prefix)]
    if len(found) == 1 and len(prefix) >= _SHORTEST_RUN_PREFIX:
        return found[0]
    if not found:
        raise StoreError(f"run {prefix!r} is not recorded in this store; `eigenmerge cache ls` lists its runs")
    raise StoreError(
        f"run {prefix!r} means {len(found)} runs; give more of its key, at least {_SHORTEST_RUN_PREFIX} signs"
    )
