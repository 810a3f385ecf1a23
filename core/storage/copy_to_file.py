"""Copy an object of a store to a file of this machine."""

from __future__ import annotations

from pathlib import Path

from .object_ranges import split_ranges
from .read_ahead import read_ahead
from .store import Store

_CHUNK_BYTES = 16 * 2**20
_CHUNKS_AHEAD = 2


def copy_to_file(store: Store, key: str, num_bytes: int, target: Path) -> Path:
    """Write the object to `target`, replacing it, and return `target`. A few chunks are in memory at a time.

    Raises
    ------
    StoreError : the object cannot be read
    """
    chunks = split_ranges([(key, 0, num_bytes)], _CHUNK_BYTES)
    with target.open("wb") as file:
        for data in read_ahead(lambda chunk: store.read_range(*chunk), chunks, _CHUNKS_AHEAD):
            file.write(data)
    return target
