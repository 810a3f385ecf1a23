"""Digests of weight files: of all bytes, or of samples of every tensor, which cost a few reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ...errors import CorruptObjectError
from ...formats.digest import hash_chunks, hash_json
from ...formats.safetensors_header import SafetensorsHeader
from ..object_hash import hash_object, hash_ranges
from ..store import Store

# How a digest begins.
COMPLETE = "sha256:"
SAMPLED = "samples:"

_PIECE_BYTES = 4096  # one page: a shorter read costs as much
_PIECES_PER_TENSOR = 4
_PIECES_PER_FILE = 1024  # with more tensors, fewer pieces of each, at least one
_REMOTE_RANGES = 16  # each is a request
_CHUNK_BYTES = 8 * 2**20

Ranges = list[tuple[int, int]]


def digest_file(store: Store, key: str, header: SafetensorsHeader, etag: str, *, complete: bool) -> str:
    """Return a digest of a weight file that depends on its bytes alone.

    Cost: one read of the file if `complete`. Otherwise, on a local disk and on storage without etags, 16 KiB of every
    tensor (4 KiB in files of more than 512 tensors); on other storage at most 16 requests of 8 KiB.

    Parameters
    ----------
    etag : as for `Store.read_range`; the caller checks afterwards that the file is unchanged

    Raises
    ------
    CorruptObjectError, ObjectChangedError, ObjectNotFoundError : the file is not the one whose header was read
    """
    if complete:
        return COMPLETE + hash_object(store, key, header.file_size, etag)
    path = store.local_path(key)
    if path is None:
        ranges = remote_ranges(header) if etag else local_ranges(header)
        sampled = hash_ranges(store, [(key, start, stop) for start, stop in ranges], etag)
    else:
        with store.translate_errors("reading", key):
            sampled = hash_chunks(_read_ranges(path, local_ranges(header)))
    tensors = [[name, entry.dtype, entry.shape, entry.start] for name, entry in sorted(header.tensors.items())]
    return SAMPLED + hash_json([header.file_size, tensors, dict(header.metadata), sampled])


def local_ranges(header: SafetensorsHeader) -> Ranges:
    """Return the ranges [start, stop) of the file that are sampled where reads are cheap: pieces of every tensor."""
    count = max(1, min(_PIECES_PER_TENSOR, _PIECES_PER_FILE // max(1, len(header.tensors))))
    return _joined(
        piece for entry in header.tensors.values() for piece in _spread_pieces(entry.start, entry.stop, count)
    )


def _spread_pieces(start: int, stop: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield `count` pieces from the first to the last byte, or the middle one; everything if that is not more."""
    room = stop - start - _PIECE_BYTES
    if stop - start <= count * _PIECE_BYTES:
        yield start, stop
        return
    for number in range(count):
        first = start + (room * number // (count - 1) if count > 1 else room // 2)
        yield first, first + _PIECE_BYTES


def remote_ranges(header: SafetensorsHeader) -> Ranges:
    """Return the ranges [start, stop) that are sampled where a read is a request: around the border of two tensors.

    One range samples both. With more than 32 tensors in a file only some are sampled: its etag identifies it too.
    """
    entries = [entry for entry in header.tensors.values() if entry.start < entry.stop]
    ranges: Ranges = []
    for first, second in zip(entries[::2], entries[1::2], strict=False):
        ranges.append((max(first.start, first.stop - _PIECE_BYTES), min(second.stop, second.start + _PIECE_BYTES)))
    if len(entries) % 2:
        ranges.append((max(entries[-1].start, entries[-1].stop - _PIECE_BYTES), entries[-1].stop))
    if len(ranges) > _REMOTE_RANGES:
        ranges = [ranges[number * len(ranges) // _REMOTE_RANGES] for number in range(_REMOTE_RANGES)]
    return _joined(ranges)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the ranges with neighbors that touch joined; empty ones are left out."""
    joined: Ranges = []
    for start, stop in ranges:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        elif start < stop:
            joined.append((start, stop))
    return joined


def _read_ranges(path: os.PathLike[str], ranges: Ranges) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for start, stop in ranges:
            for position in range(start, stop, _CHUNK_BYTES):  # many small tensors are one long range
                length = min(stop - position, _CHUNK_BYTES)
                data = os.pread(descriptor, length, position)
                if len(data) != length:
                    raise CorruptObjectError(f"{path} is too short: expected at least {position + length} bytes")
                yield data
    finally:
        os.close(descriptor)
