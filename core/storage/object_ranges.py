"""Ranges of stored objects, and their division into chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

ObjectRange = tuple[str, int, int]  # key, start, stop: bytes [start, stop) of one object


def split_ranges(ranges: Iterable[ObjectRange], chunk_bytes: int) -> Iterator[ObjectRange]:
    """Divide ranges into consecutive ranges of at most `chunk_bytes`, in order."""
    for key, start, stop in ranges:
        for position in range(start, stop, chunk_bytes):
            yield key, position, min(position + chunk_bytes, stop)
