"""The hash of a file that is still being written."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Callable

import pytest

from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.assembly.file_hash import FileHash
from eigenmerge.core.storage.assembly.part_check import DamagedPartError, TensorBytes
from eigenmerge.core.storage.store import Store

Place = Callable[[str], Store]
MIB = 2**20


def test_ranges_in_the_order_of_adding(place: Place) -> None:
    store = place("store")
    contents = [os.urandom(size) for size in (3 * MIB, 10, 0, MIB)]
    file_hash = FileHash(store, b"head")
    for number, content in enumerate(contents):
        store.write(f"parts/{number}", b"own header" + content)
        file_hash.add(f"parts/{number}", 10, 10 + len(content))
    assert file_hash.result() == hashlib.sha256(b"head" + b"".join(contents)).hexdigest()


def test_without_ranges_it_is_the_hash_of_the_header(place: Place) -> None:
    assert FileHash(place("store"), b"head").result() == hashlib.sha256(b"head").hexdigest()


def test_a_missing_or_short_part_is_reported_by_result(place: Place) -> None:
    place("store").write("short", b"123")
    for key, error in (("none", ObjectNotFoundError), ("short", CorruptObjectError)):
        file_hash = FileHash(place("store"), b"")
        file_hash.add(key, 0, 10)
        with pytest.raises(error):
            file_hash.result()


def test_close_cancels_and_leaves_no_thread(place: Place) -> None:
    before = threading.active_count()
    file_hash = FileHash(place("store"), b"")
    for _ in range(100):
        file_hash.add("none", 0, 10)
    file_hash.close()
    file_hash.close()
    assert threading.active_count() <= before + 1  # the event loop of a first S3 connection may remain


def test_a_range_with_another_crc_is_damaged(place: Place) -> None:
    store = place("store")
    content = os.urandom(2 * MIB + 1)
    store.write("part", b"head" + content)
    tensors = [TensorBytes("whole", len(content), hashlib.sha256(content).hexdigest())]
    right = FileHash(store, b"")
    right.add("part", 4, 4 + len(content), tensors, zlib.crc32(content))
    assert right.result() == tensors[0].sha256
    store.write("part", b"head" + content[:-1] + bytes([content[-1] ^ 1]))
    damaged = FileHash(store, b"")
    damaged.add("part", 4, 4 + len(content), tensors, zlib.crc32(content))
    with pytest.raises(DamagedPartError, match="'whole' has other bytes"):
        damaged.result()


def test_a_crc_of_other_bytes_is_damage_where_the_tensors_are_right(place: Place) -> None:
    place("store").write("part", b"content")
    tensors = [TensorBytes("whole", 7, hashlib.sha256(b"content").hexdigest())]
    file_hash = FileHash(place("store"), b"")
    file_hash.add("part", 0, 7, tensors, zlib.crc32(b"other"))
    with pytest.raises(DamagedPartError, match="from read to read"):
        file_hash.result()
