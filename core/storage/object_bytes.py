"""Read a range of a stored object into a tensor of bytes: memory-mapped if local, else fetched in parallel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from .mapped_file import map_bytes
from .store import Store

_REQUEST_BYTES = 8 * 2**20  # long enough that bandwidth dominates latency, short enough to repeat after a failure
_PARALLEL_REQUESTS = 8


def read_object_bytes(store: Store, key: str, start: int, stop: int) -> torch.Tensor:
    """Read bytes [start, stop) of an object.

    Returns
    -------
    Tensor, (stop - start,), uint8; writing to it does not change the store

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : the object is shorter than `stop`
    """
    if start == stop:
        return torch.empty(0, dtype=torch.uint8)
    path = store.local_path(key)
    if path is None:
        return fetch_bytes(store, key, start, stop)
    with store.translate_errors("reading", key):
        return map_bytes(path, start, stop)


def fetch_bytes(store: Store, key: str, start: int, stop: int, etag: str = "") -> torch.Tensor:
    """Read bytes [start, stop) with parallel ranged reads into one tensor, (stop - start,), uint8.

    Raises
    ------
    as `read_object_bytes`
    ObjectChangedError : an etag is given and the object has another one
    """
    data = torch.empty(stop - start, dtype=torch.uint8)
    target = memoryview(data.numpy().data)

    def fetch(position: int) -> None:
        end = min(position + _REQUEST_BYTES, stop)
        target[position - start : end - start] = store.read_range(key, position, end, etag)

    positions = range(start, stop, _REQUEST_BYTES)
    if len(positions) == 1:
        fetch(start)
    else:
        with ThreadPoolExecutor(min(_PARALLEL_REQUESTS, len(positions)), thread_name_prefix="fetch") as pool:
            list(pool.map(fetch, positions))
    store.check_unchanged(key, etag)
    return data
