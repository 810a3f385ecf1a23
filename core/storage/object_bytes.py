"""Read a range of a stored object into a tensor of bytes: memory-mapped if local, else fetched in parallel."""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from .mapped_file import map_bytes
from .store import Store

_REQUEST_BYTES = 8 * 2**20  # long enough that bandwidth dominates latency, short enough to repeat after a failure
_PARALLEL_REQUESTS = 8

_LARGE_BYTES = 2**20  # larger than the work buffers of a merge by blocks, smaller than most requests
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


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
    _return_freed_memory()
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


@cache
def _return_freed_memory() -> None:
    """Let glibc map buffers of 1 MiB and more one by one in this process, and unmap them when they are freed.

    By itself glibc raises this limit, up to 32 MiB, to the size of the largest buffer that was freed. What is smaller
    comes from heaps, one for each thread, that keep what is freed: a merge by blocks of three remote models held 400
    MB, of which the plan knew 226. Mapping costs about half a second of processor time for each GB that is read. The
    trim threshold is twice the limit, as glibc sets it; with only the limit set it would be 128 KiB, and heaps would
    return and request again the memory of every work buffer.

    Does nothing where the C library has no `mallopt`, as on macOS and with musl.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)
