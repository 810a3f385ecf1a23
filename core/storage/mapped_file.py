"""Bytes of a local file as a tensor, without a copy."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch

from ..errors import CorruptObjectError


def map_bytes(path: Path, start: int, stop: int) -> torch.Tensor:
    """Bytes [start, stop) of a file, flat, uint8; stop > start.

    One map for each call, not one for each file: the pages of a map count as memory of this process as long as it
    lives, and a file's map would keep everything that was ever read. The map goes with the last tensor that uses it.
    Writing to the tensor changes no file.

    Raises
    ------
    CorruptObjectError : the file is shorter than `stop`
    OSError : it cannot be opened
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size
        if size < stop:  # reading such a map would end the process with SIGBUS
            raise CorruptObjectError(f"{path} is too short: {size} bytes, expected at least {stop}")
        page_start = start - start % mmap.ALLOCATIONGRANULARITY
        # Private and writable: torch has no read-only tensors, and a write must neither crash nor change the file.
        mapped = mmap.mmap(descriptor, stop - page_start, mmap.MAP_PRIVATE, offset=page_start)
    finally:
        os.close(descriptor)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    return torch.frombuffer(mapped, dtype=torch.uint8, count=stop - start, offset=start - page_start)


def view_as(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Flat bytes as numbers; copied only where they do not begin at a multiple of their size, which views must."""
    if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype)
