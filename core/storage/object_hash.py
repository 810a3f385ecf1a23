"""SHA-256 of stored objects and of ranges of them."""

from __future__ import annotations

from collections.abc import Iterable

from ..formats.digest import hash_chunks
from .object_ranges import ObjectRange, split_ranges
from .read_ahead import read_ahead
from .store import Store

_CHUNK_BYTES = 8 * 2**20
_CHUNKS_AHEAD = 2


def hash_object(store: Store, key: str, num_bytes: int, etag: str = "") -> str:
    """Hash the first `num_bytes` bytes of an object.

    Memory: 24 MiB.

    Parameters
    ----------
    etag : as for `Store.read_range`; the caller calls `Store.check_unchanged`

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : the object is shorter
    """
    return hash_ranges(store, [(key, 0, num_bytes)], etag)


def hash_ranges(store: Store, ranges: Iterable[ObjectRange], etag: str = "") -> str:
    """Hash ranges of objects as if they were one object.

    Raises
    ------
    ObjectNotFoundError, CorruptObjectError : as `hash_object`
    """
    chunks = split_ranges(ranges, _CHUNK_BYTES)
    return hash_chunks(read_ahead(lambda chunk: store.read_range(*chunk, etag), chunks, _CHUNKS_AHEAD))
