"""Check every object of a store against its checksums."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ...cache.inventory import take_inventory
from ...cache.kinds import deleted_together, deletion_order, divide_by_owner, is_ours, kind_of, was_ours
from ...cache.parts import is_part, record_key
from ...cache.store_marker import require_store
from ...errors import CorruptObjectError, ObjectNotFoundError
from ...formats.store_folders import STORE_MARKER
from ...storage.store import Store

_PARALLEL_OBJECTS = 4  # a check may hold an object as large as a layer in memory


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged object. `keys`: what has to be deleted so that it is computed again."""

    key: str
    reason: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """Result of a check.

    num_checked, num_bytes : of the objects that were read
    uncommitted : parts without a record; a killed run leaves them, and the next run replaces them
    foreign : objects that Eigenmerge did not write, or an earlier version did; never removed
    removed : keys of `damaged` that were removed. A damaged object that no record lists and that nothing else proves to
        be ours is kept.
    """

    num_checked: int
    num_bytes: int
    damaged: tuple[Damage, ...]
    uncommitted: tuple[str, ...]
    foreign: tuple[str, ...]
    removed: tuple[str, ...] = ()


def verify_store(store: Store, *, delete: bool = False) -> StoreCheck:
    """Read every object and check it.

    Cost: one read of the whole store.

    Parameters
    ----------
    delete : remove damaged objects; the next run that needs them computes them again

    Raises
    ------
    NoStoreError : the place is not a store
    """
    require_store(store)
    sizes = {info.key: info.size for info in store.list("") if info.key != STORE_MARKER}
    kinds = {key: kind_of(key) for key in sizes}
    uncommitted = [key for key in sizes if is_part(key) and record_key(key) not in sizes]
    checks = {
        key: kind.check
        for key, kind in kinds.items()
        if kind is not None and kind.check is not None and key not in set(uncommitted)
    }

    def find_damage(key: str) -> Damage | None:
        try:
            checks[key](store, key)
        except ObjectNotFoundError as error:
            # Either this object was removed after it was listed, or the object is there and its record is not.
            return Damage(key, str(error), deleted_together(key)) if store.exists(key) else None
        except CorruptObjectError as error:
            return Damage(key, str(error), deleted_together(key))
        return None

    with ThreadPoolExecutor(_PARALLEL_OBJECTS, thread_name_prefix="verify") as pool:
        damaged = [damage for damage in pool.map(find_damage, checks) if damage is not None]
    foreign = [key for key, kind in kinds.items() if kind is None]
    removed: list[str] = []
    if delete and damaged:
        listed = {key for run in take_inventory(store).runs for key in run.objects or ()}
        removed, _ = divide_by_owner(store, [damage.key for damage in damaged], listed, _is_or_was_ours)
        together = dict.fromkeys(key for damage in damaged if damage.key in set(removed) for key in damage.keys)
        store.delete(sorted(together, key=deletion_order))
    return StoreCheck(
        len(checks),
        sum(sizes[key] for key in checks),
        tuple(damaged),
        tuple(uncommitted),
        tuple(foreign),
        tuple(removed),
    )


def _is_or_was_ours(store: Store, key: str) -> bool:
    return any(is_ours(store, one) or was_ours(store, one) for one in deleted_together(key))
