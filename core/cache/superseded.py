"""Kept sums that a larger set of experts contains: they save work only if an expert is removed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast

from ..errors import CorruptObjectError, ObjectNotFoundError
from ..formats.store_folders import SUMS
from ..storage.store import Store
from .inventory import Inventory
from .sealed_tensors import read_seal

_PARALLEL_READS = 8


def superseded_sums(store: Store, inventory: Inventory) -> frozenset[str]:
    """Return the keys of sums whose experts are all in a larger set of the same matrix.

    A scheduled merge that gains an expert every night keeps one set every night, each as large as the one before.

    Cost: one small read for each set of a matrix that has several.
    """
    folders: dict[str, list[str]] = {}
    for key in inventory.objects:
        if key.startswith(SUMS):
            folders.setdefault(key.rpartition("/")[0], []).append(key)
    several = [keys for keys in folders.values() if len(keys) > 1]
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="superseded") as pool:
        candidates = [key for keys in several for key in keys]
        members = dict(zip(candidates, pool.map(partial(_read_members, store), candidates), strict=True))
    return frozenset(key for keys in several for key in _contained({key: members[key] for key in keys}))


def _contained(sets: Mapping[str, Counter[str] | None]) -> Iterator[str]:
    """Yield the keys of the sets that are proper subsets of another one; an expert may occur twice in a set."""
    for key, own in sets.items():
        if own is not None and any(other is not None and own < other for other in sets.values()):
            yield key


def _read_members(store: Store, key: str) -> Counter[str] | None:
    """Return the experts of a set; None where the object is damaged or was deleted meanwhile."""
    try:
        members = read_seal(store, key).facts.get("members")
    except (CorruptObjectError, ObjectNotFoundError):
        return None
    return Counter(cast("list[str]", members)) if isinstance(members, list) else None
