"""Remove runs and unused objects from a store, except what an active run claims or another kept run uses.

Only objects that Eigenmerge wrote are removed: their keys are hashes in a folder of the store, and a record of a run
lists them or their content proves it (`cache.kinds.is_ours`). The place must be a store (`cache.store_marker`).

Every object of a store can be computed again, so a wrong removal costs time and never changes a result. A run that
begins during a removal computes the removed objects again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache.inventory import Inventory, reread_runs, store_clock, take_inventory
from ..cache.kinds import deletion_order, divide_by_owner, kind_of
from ..cache.store_marker import require_store
from ..errors import StoreError
from ..formats.store_folders import CLAIMS, FOLDERS, PROBES, RUNS
from ..storage.store import Store

_SHORTEST_RUN_PREFIX = 4
_SHOWN_KEY_CHARACTERS = 12
# On S3 an upload in progress cannot be told from an abandoned one. No upload takes a day.
_SURELY_ABANDONED_SECONDS = 86400.0
# A younger probe may belong to a process that tests the store now.
_PROBE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a collection removes.

    keys : in the order of deletion, see `deletion_order`
    runs : keys of the runs whose records are removed
    num_bytes : of all `keys`
    kept_running : keys of runs that are old enough and stay because they are active
    """

    keys: tuple[str, ...]
    runs: tuple[str, ...]
    num_bytes: int
    kept_running: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, or would remove (`dry_run`).

    num_abandoned : unfinished files and uploads; None in a dry run, because only their removal counts them
    kept_foreign : keys that have the form of a key of ours, and content that Eigenmerge did not write, or that is
        damaged so that this cannot be told
    """

    runs: tuple[str, ...]
    num_objects: int
    num_bytes: int
    num_abandoned: int | None
    kept_running: tuple[str, ...]
    kept_foreign: tuple[str, ...]
    dry_run: bool


def collect_garbage(
    store: Store,
    *,
    older_than: float | None = None,
    runs: Sequence[str] = (),
    superseded: bool = False,
    dry_run: bool = False,
) -> Collected:
    """Remove runs, the objects that only these runs use, and what killed processes left.

    Parameters
    ----------
    older_than : seconds; removes runs whose record is older, and objects of that age that no run uses
    runs : keys of runs to remove whatever their age, or the first characters of a key where no other run has them
    superseded : remove sums over experts that a larger set contains; the runs that used them have their results
    dry_run : write and remove nothing; ages are then measured by this machine's clock

    Raises
    ------
    NoStoreError : the place is not a store
    StoreError : a run of `runs` does not exist or is active, or several runs have these first characters
    """
    require_store(store)
    inventory = take_inventory(store, None if dry_run else store_clock(store))
    named = [_find_run(inventory, prefix) for prefix in runs]
    useless: frozenset[str] = frozenset()
    if superseded:
        from ..cache.superseded import superseded_sums

        useless = superseded_sums(store, inventory)
    if not dry_run:
        inventory = reread_runs(store, inventory)  # a run may have begun while a large store was listed
    garbage = find_garbage(inventory, older_than=older_than, runs=named, useless=useless)
    listed = {key for run in inventory.runs for key in run.objects or ()}
    keys, foreign = divide_by_owner(store, garbage.keys, listed)
    kept_runs = {key.split("/")[1] for key in foreign if key.startswith(RUNS)}
    abandoned = None
    if not dry_run:
        store.delete(keys)
        abandoned_after = 0.0 if store.is_local else max(older_than or 0.0, _SURELY_ABANDONED_SECONDS)
        abandoned = store.remove_abandoned(abandoned_after, lambda key: _is_written_by_us(store, key))
    return Collected(
        runs=tuple(key for key in garbage.runs if key not in kept_runs),
        num_objects=len(keys),
        num_bytes=inventory.size(keys),
        num_abandoned=abandoned,
        kept_running=garbage.kept_running,
        kept_foreign=tuple(foreign),
        dry_run=dry_run,
    )


def _is_written_by_us(store: Store, key: str) -> bool:
    """Return whether an unfinished file or upload of that key is one of the store. On disk its name is temporary."""
    return key.startswith(FOLDERS) if store.is_local else kind_of(key) is not None


def find_garbage(
    inventory: Inventory, *, older_than: float | None, runs: Sequence[str], useless: frozenset[str] = frozenset()
) -> Garbage:
    """Choose what to remove, without any access to the store.

    Parameters
    ----------
    older_than, runs : as in `collect_garbage`; whole keys of runs
    useless : keys that are removed although a kept run uses them, unless that run is active

    Raises
    ------
    StoreError : a run of `runs` is active
    """

    def is_old(modified: float) -> bool:
        # 0: the store does not record when an object was written. Such objects count as young.
        return older_than is not None and modified > 0 and inventory.now - modified > older_than

    active = [run for run in inventory.runs if run.state == "running"]
    for run in active:
        if run.key in runs:
            raise StoreError(
                f"run {run.key[:_SHOWN_KEY_CHARACTERS]} is active: stop it first, or wait until it has finished"
            )
    removed = {run.key for run in inventory.runs if run.state != "running" and (run.key in runs or is_old(run.written))}
    used = {key for run in inventory.runs for key in run.keys}
    used_by_active = inventory.claimed_parts.union(*(run.keys for run in active))
    used_by_kept = {key for run in inventory.runs if run.key not in removed for key in run.keys}
    protected = used_by_active | (used_by_kept - useless)
    # An active run whose record is not written yet, or damaged, might use any object.
    unknown_use = any(run.objects is None for run in active)

    def is_garbage(key: str) -> bool:
        if key in protected or kind_of(key) is None:
            return False
        modified = inventory.objects[key].modified
        if key.startswith(CLAIMS):
            return key in inventory.dead_claims
        if key.startswith(PROBES):
            return 0 < modified < inventory.now - _PROBE_SECONDS
        return not unknown_use and (key in used or key in useless or is_old(modified))

    keys = sorted((key for key in inventory.objects if is_garbage(key)), key=deletion_order)
    kept_running = tuple(run.key for run in active if is_old(run.written))
    return Garbage(tuple(keys), tuple(sorted(removed)), inventory.size(keys), kept_running)


def _find_run(inventory: Inventory, prefix: str) -> str:
    """Return the key of the only run that begins with `prefix`."""
    found = [run.key for run in inventory.runs if run.key.startswith(prefix)]
    if not found:
        raise StoreError(f"run {prefix!r} is not recorded in this store; `eigenmerge cache ls` lists its runs")
    if len(prefix) < _SHORTEST_RUN_PREFIX:
        raise StoreError(f"{prefix!r} is too short: give at least {_SHORTEST_RUN_PREFIX} characters of the run key")
    if len(found) > 1:
        raise StoreError(f"{prefix!r} is the beginning of {len(found)} run keys; give more characters")
    return found[0]
