"""Hashes of stored objects and ranges, and the division of ranges into chunks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.object_hash import hash_object, hash_ranges
from eigenmerge.core.storage.object_ranges import split_ranges
from eigenmerge.core.storage.store import Store

Place = Callable[[str], Store]


def test_objects_and_ranges(place: Place) -> None:
    store, large, small = place("store"), os.urandom(17 * 2**20), b"0123456789"
    store.write("large", large)
    store.write("small", small)
    assert hash_object(store, "large", len(large)) == hashlib.sha256(large).hexdigest()
    assert hash_object(store, "small", 0) == hashlib.sha256(b"").hexdigest()
    ranges = [("small", 5, 9), ("large", 1, len(large)), ("small", 3, 3), ("small", 0, 2)]
    assert hash_ranges(store, ranges) == hashlib.sha256(small[5:9] + large[1:] + small[:2]).hexdigest()


def test_missing_and_short_objects(place: Place) -> None:
    store = place("store")
    store.write("x", b"0123456789")
    with pytest.raises(ObjectNotFoundError):
        hash_object(store, "none", 1)
    with pytest.raises(CorruptObjectError):
        hash_object(store, "x", 11)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 50))), st.integers(1, 20))
def test_chunks_cover_the_ranges_in_order(bounds: list[tuple[str, int, int]], chunk_bytes: int) -> None:
    ranges = [(key, start, start + length) for key, start, length in bounds]
    chunks = list(split_ranges(ranges, chunk_bytes))
    assert all(0 < stop - start <= chunk_bytes for _, start, stop in chunks)
    flat = [(key, position) for key, start, stop in ranges for position in range(start, stop)]
    assert [(key, position) for key, start, stop in chunks for position in range(start, stop)] == flat
