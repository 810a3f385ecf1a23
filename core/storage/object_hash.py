"""SHA-256 of stored objects and of ranges of them."""

from __future__ import annotations

from collections.abc import Iterable

from ..formats.digest import hash_chunks
from .object_ranges import ObjectRange, split_ranges
from .read_ahead import read_ahead
from .store import Store

_REMOTE_CHUNK_BYTES = 8 * 2**20  # a request each, long enough that bandwidth dominates
_REMOTE_CHUNKS_AHEAD = 2
_LOCAL_CHUNK_BYTES = 2**19  # stays in the cache of a core; a plan hashes many models at the same time


def hash_object(store: Store, key: str, num_bytes: int, etag: str = "") -> str:
    """Hash the first `num_bytes` bytes of an object.

    Memory: 512 KiB on a local disk, else 24 MiB.

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

    def read(chunk: ObjectRange) -> bytes:
        return store.read_range(*chunk, etag)

    if store.is_local:
        return hash_chunks(map(read, split_ranges(ranges, _LOCAL_CHUNK_BYTES)))
    return hash_chunks(read_ahead(read, split_ranges(ranges, _REMOTE_CHUNK_BYTES), _REMOTE_CHUNKS_AHEAD))
