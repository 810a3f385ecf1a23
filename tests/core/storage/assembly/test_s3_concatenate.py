"""Joining objects on an S3 server: which parts are copied, and what is sent."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.storage.assembly.s3_concatenate import (
    SMALLEST_PART_BYTES,
    CopiedPart,
    SentPart,
    concatenate_objects,
    plan_parts,
)
from eigenmerge.core.storage.store import Store

from ....conftest import S3Root
from ....faulty_proxy import FaultyProxy

MIB = 2**20


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 6 * MIB),
    st.lists(st.integers(0, 3 * MIB) | st.integers(4 * MIB, 12 * MIB) | st.just(600 * MIB), max_size=8),
)
def test_parts_are_legal_and_complete(header_bytes: int, sizes: list[int]) -> None:
    header = bytes(header_bytes)
    ranges = [(str(number), 100, 100 + size) for number, size in enumerate(sizes)]
    parts = plan_parts(header, ranges)
    pieces: list[tuple[str, int, int]] = []
    for position, part in enumerate(parts):
        if isinstance(part, SentPart):
            assert (part.head == header) if position == 0 and header else not part.head
            assert part.num_bytes >= SMALLEST_PART_BYTES or position == len(parts) - 1
            assert part.num_bytes < max(4 * SMALLEST_PART_BYTES, header_bytes + 2 * SMALLEST_PART_BYTES)
            pieces.extend(part.ranges)
        else:
            assert isinstance(part, CopiedPart)
            assert SMALLEST_PART_BYTES <= part.stop - part.start <= 5 * 2**30
            pieces.append((part.key, part.start, part.stop))
    joined: list[list] = []
    for key, start, stop in pieces:
        if joined and joined[-1][0] == key and joined[-1][2] == start:
            joined[-1][2] = stop
        else:
            joined.append([key, start, stop])
    assert [tuple(piece) for piece in joined] == [piece for piece in ranges if piece[2] > piece[1]]


def test_the_header_takes_what_it_lacks_from_the_first_range() -> None:
    assert plan_parts(b"head", [("a", 10, 10 + 20 * MIB)]) == [
        SentPart(b"head", (("a", 10, 6 + 5 * MIB),)),
        CopiedPart("a", 6 + 5 * MIB, 10 + 20 * MIB),
    ]
    assert plan_parts(b"head", []) == [SentPart(b"head", ())]


def test_only_sent_parts_pass_through_this_process(faulty_s3: tuple[FaultyProxy, S3Root]) -> None:
    proxy, root = faulty_s3
    store = Store(root.uri, root.storage_options)
    contents = {key: os.urandom(12 * MIB) for key in "ab"}
    for key, content in contents.items():
        store.write(key, content)
    proxy.requests.clear()
    before = proxy.bytes_moved
    ranges = [("a", 100, 12 * MIB), ("b", 0, 12 * MIB)]
    transferred = concatenate_objects(store, "joined", b"head", store, ranges)
    assert transferred == 5 * MIB
    assert proxy.bytes_moved - before < 2 * transferred + MIB  # read once and sent once
    assert Counter(method for method, _, _ in proxy.requests)["PUT"] == 3
    assert store.read("joined") == b"head" + contents["a"][100:] + contents["b"]


def test_a_failure_aborts_the_upload(s3_root: S3Root) -> None:
    store = Store(s3_root.uri, s3_root.storage_options)
    store.write("a", bytes(12 * MIB))
    with pytest.raises(CorruptObjectError):
        concatenate_objects(store, "joined", b"head", store, [("a", 0, 12 * MIB), ("a", 12 * MIB - 5, 12 * MIB + 5)])
    assert not store.exists("joined")
    assert store.remove_abandoned() == 0
