"""SHA-256 of stored objects and of ranges of them."""

from __future__ import annotations

from collections.abc import Iterable

from ..formats.digest import hash_chunks
from .object_ranges import ObjectRange, split_ranges
from .read_ahead import read_ahead
from .store import Store

_CHUNK_BYTES = 8 * 2**20
_CHUNKS_AHEAD = 2


def hash_object(store: Store, key: str, num_bytes: int) -> str:
    """Hash the first `num_bytes` bytes of an object.

    Memory: 24 MiB.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : the object is shorter
    """
    return hash_ranges(store, [(key, 0, num_bytes)])


def hash_ranges(store: Store, ranges: Iterable[ObjectRange]) -> str:
    """Hash ranges of objects as if they were one object.

    Raises
    ------
    ObjectNotFoundError, CorruptObjectError : as `hash_object`
    """
    chunks = split_ranges(ranges, _CHUNK_BYTES)
    return hash_chunks(read_ahead(lambda chunk: store.read_range(*chunk), chunks, _CHUNKS_AHEAD))
