"""A range of a stored object as flat bytes in a tensor: mapped where it lies on this machine, else fetched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from .mapped_file import map_bytes
from .store import Store

_CHUNK_BYTES = 8 * 2**20  # one request: long enough to be paid by bandwidth, short enough to be repeated
_PARALLEL_REQUESTS = 8


def read_object_bytes(store: Store, key: str, start: int, stop: int) -> torch.Tensor:
    """Bytes [start, stop), uint8. Writing to the tensor changes nothing in the store.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : it is shorter than `stop`
    """
    if start == stop:
        return torch.empty(0, dtype=torch.uint8)
    path = store.local_path(key)
    if path is None:
        return fetch_bytes(store, key, start, stop)
    with store.translate_errors("reading", key):
        return map_bytes(path, start, stop)


def fetch_bytes(store: Store, key: str, start: int, stop: int) -> torch.Tensor:
    """The same by ranged reads, several at a time, straight into the tensor's memory."""
    data = torch.empty(stop - start, dtype=torch.uint8)
    target = memoryview(data.numpy().data)

    def fetch(position: int) -> None:
        end = min(position + _CHUNK_BYTES, stop)
        target[position - start : end - start] = store.read_range(key, position, end)

    positions = range(start, stop, _CHUNK_BYTES)
    if len(positions) == 1:
        fetch(start)
        return data
    with ThreadPoolExecutor(min(_PARALLEL_REQUESTS, len(positions)), thread_name_prefix="tensor") as pool:
        list(pool.map(fetch, positions))
    return data
