"""Read a range of an open local file into the memory of a tensor."""

from __future__ import annotations

import os

import torch

from ..errors import CorruptObjectError

_LONGEST_READ_BYTES = 2**30  # one read returns at most 2 GiB on Linux


def read_file_bytes(descriptor: int, start: int, stop: int) -> torch.Tensor:
    """Read bytes [start, stop) of a file.

    Returns
    -------
    Tensor, (stop - start,), uint8

    Raises
    ------
    CorruptObjectError : the file is shorter than `stop`
    """
    data = torch.empty(stop - start, dtype=torch.uint8)
    read_bytes_into(descriptor, start, data)
    return data


def read_bytes_into(descriptor: int, start: int, data: torch.Tensor) -> None:
    """Read the bytes of a file from `start` into a contiguous uint8 tensor, as many as it has.

    Raises
    ------
    CorruptObjectError : the file is too short
    """
    rest = memoryview(data.numpy().data)
    position = start
    while rest:
        count = os.preadv(descriptor, [rest[:_LONGEST_READ_BYTES]], position)
        if not count:
            raise CorruptObjectError(
                f"the file is too short: {os.fstat(descriptor).st_size} bytes, expected at least {start + len(data)}"
            )
        position += count
        rest = rest[count:]
