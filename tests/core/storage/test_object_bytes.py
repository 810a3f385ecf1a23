"""Ranges of objects as tensors, on local disk, in memory and on S3."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.object_bytes import fetch_bytes, read_object_bytes
from eigenmerge.core.storage.store import Store

Place = Callable[[str], Store]
MIB = 2**20


def test_ranges_of_one_and_of_several_requests(place: Place) -> None:
    store, content = place("store"), os.urandom(20 * MIB)
    store.write("x", content)
    for start, stop in ((0, 1), (3, 1000), (5, 8 * MIB + 5), (1, 20 * MIB), (7, 7)):
        for read in (read_object_bytes, fetch_bytes):
            if start == stop and read is fetch_bytes:
                continue
            found = read(store, "x", start, stop)
            assert found.dtype == torch.uint8
            assert found.numpy().tobytes() == content[start:stop]


def test_writing_to_the_tensor_does_not_change_the_store(place: Place) -> None:
    store = place("store")
    store.write("x", b"content")
    read_object_bytes(store, "x", 0, 7).fill_(0)
    assert store.read("x") == b"content"


def test_missing_and_short_objects(place: Place) -> None:
    store = place("store")
    store.write("x", b"content")
    with pytest.raises(ObjectNotFoundError, match="none"):
        read_object_bytes(store, "none", 0, 1)
    with pytest.raises(CorruptObjectError, match="7 bytes"):
        read_object_bytes(store, "x", 0, 8)
