"""Kept sums that a larger set of experts has made useless, unless an expert leaves again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from ..errors import CorruptObjectError, ObjectNotFoundError
from ..storage.store import Store
from .inventory import Inventory
from .layout import SUMS
from .sealed_tensors import read_seal

_PARALLEL_READS = 8


def superseded_sums(store: Store, inventory: Inventory) -> frozenset[str]:
    """Keys of the sets of sums that are wholly part of another set over the same matrix.

    A scheduled merge that gains an expert each night keeps a set each night, each as large as the last.

    Cost: one small read for each set of a matrix that has several.
    """
    folders: dict[str, list[str]] = {}
    for key in inventory.objects:
        if key.startswith(SUMS):
            folders.setdefault(key.rpartition("/")[0], []).append(key)
    several = [keys for keys in folders.values() if len(keys) > 1]
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="superseded") as pool:
        members = dict(pool.map(lambda key: (key, _members(store, key)), (key for keys in several for key in keys)))
    return frozenset(key for keys in several for key in _parts_of_others({key: members[key] for key in keys}))


def _parts_of_others(sets: Mapping[str, Counter[str] | None]) -> Iterator[str]:
    for key, own in sets.items():
        if own is not None and any(other is not None and own < other for other in sets.values()):
            yield key


def _members(store: Store, key: str) -> Counter[str] | None:
    try:
        members = read_seal(store, key).facts.get("members")
    except (CorruptObjectError, ObjectNotFoundError):
        return None
    return Counter(members) if isinstance(members, list) else None
