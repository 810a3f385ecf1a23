"""Memory-map a range of a local file as a tensor, without copying it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch

from ..errors import CorruptObjectError


def map_bytes(path: Path, start: int, stop: int) -> torch.Tensor:
    """Map bytes [start, stop) of a file; requires start < stop.

    Each call makes its own map, which is released with the last tensor that uses it. One map per file would keep in
    memory every page that was ever read.

    Returns
    -------
    Tensor, (stop - start,), uint8; writing to it does not change the file

    Raises
    ------
    CorruptObjectError : the file is shorter than `stop`
    OSError : the file cannot be opened
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size
        if size < stop:  # reading beyond the end of the file would kill the process with SIGBUS
            raise CorruptObjectError(f"{path} is too short: {size} bytes, expected at least {stop}")
        page_start = start - start % mmap.ALLOCATIONGRANULARITY
        # Private and writable: torch has no read-only tensors, and a write must neither fail nor change the file.
        mapped = mmap.mmap(descriptor, stop - page_start, mmap.MAP_PRIVATE, offset=page_start)
    finally:
        os.close(descriptor)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    return torch.frombuffer(mapped, dtype=torch.uint8, count=stop - start, offset=start - page_start)


def view_as(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """View flat bytes as numbers; copies them only where their address is not a multiple of the element size."""
    if data.data_ptr() % dtype.itemsize or data.storage_offset() % dtype.itemsize:
        data = data.clone()
    return data.view(dtype)
