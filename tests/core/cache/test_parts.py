"""Parts: a committed part is found, anything else is made again with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from eigenmerge.core.cache.parts import (
    find_part,
    is_part,
    read_record,
    record_key,
    shard_table_key,
    verify_part,
    verify_record,
    write_record,
)
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.store import Store

from .examples import norm, shard, write_part

Place = Callable[[str], Store]
SHARD = shard(0, norm("a"), norm("b"))
DATA = b"header--the data of a part"


def test_keys_of_one_part_differ_in_their_suffix() -> None:
    assert record_key("parts/h.safetensors") == "parts/h.json"
    assert shard_table_key("parts/h.safetensors") == "parts/h.arrow"
    assert is_part("parts/h.safetensors")
    assert not is_part("parts/h.json") and not is_part("sums/h.safetensors")


def test_a_committed_part_is_found_under_the_index_of_the_plan_at_hand(place: Place) -> None:
    store = place("store")
    written = write_part(store, SHARD, DATA)
    found, reason = find_part(store, replace(SHARD, index=7))
    assert reason is None
    assert found == replace(written, index=7, reused=True)


def test_nothing_there_gives_no_reason(place: Place) -> None:
    assert find_part(place("store"), SHARD) == (None, None)


def test_a_part_without_its_record_is_not_committed(place: Place) -> None:
    store = place("store")
    store.write(SHARD.part_key, DATA)
    assert find_part(store, SHARD) == (None, None)
    with pytest.raises(ObjectNotFoundError):
        read_record(store, SHARD.part_key)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (DATA[:-1], "has 25 bytes, expected 26"),
        (DATA + b"x", "has 27 bytes, expected 26"),
        (b"", "has 0 bytes, expected 26"),
        (DATA[:-1] + b"X", "fails its checksum"),
    ],
)
def test_a_part_that_differs_from_its_record(place: Place, data: bytes, reason: str) -> None:
    store = place("store")
    write_part(store, SHARD, DATA, etag="an earlier one")
    store.write(SHARD.part_key, data)
    found, why = find_part(store, SHARD)
    assert found is None and why is not None and reason in why and why.endswith("; made again")
    with pytest.raises(CorruptObjectError, match=reason):
        verify_part(store, SHARD.part_key)


def test_a_part_that_is_gone(place: Place) -> None:
    store = place("store")
    write_part(store, SHARD, DATA)
    store.delete([SHARD.part_key])
    found, reason = find_part(store, SHARD)
    assert found is None and reason == f"part {SHARD.part_key} is missing; made again"
    with pytest.raises(CorruptObjectError, match="its part is missing"):
        verify_record(store, record_key(SHARD.part_key))


def test_a_copy_of_a_store_is_hashed_once_and_used(place: Place) -> None:
    """The copy has other etags; its content is the same."""
    source, copy = place("source"), place("copy")
    write_part(source, SHARD, DATA)
    for key in (SHARD.part_key, record_key(SHARD.part_key)):
        copy.write(key, source.read(key))
    found, reason = find_part(copy, SHARD)
    assert found is not None and reason is None


def test_an_unchanged_etag_saves_the_hash(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    write_part(store, SHARD, DATA)
    monkeypatch.setattr(store.backend, "read_range", lambda *_: pytest.fail("the part was read"))
    found, reason = find_part(store, SHARD)
    assert found is not None and reason is None


def test_verify_hashes_although_the_etag_is_unchanged(tmp_path) -> None:
    store = Store(str(tmp_path))
    report = write_part(store, SHARD, DATA)
    verify_part(store, SHARD.part_key)
    write_record(store, replace(report, sha256="0" * 64))
    with pytest.raises(CorruptObjectError, match="fails its checksum"):
        verify_part(store, SHARD.part_key)


def test_the_record_of_another_part(place: Place) -> None:
    store = place("store")
    write_part(store, SHARD, DATA)
    other = shard(1, norm("a"), norm("b"))
    store.write(other.part_key, DATA)
    store.write(record_key(other.part_key), store.read(record_key(SHARD.part_key)))
    found, reason = find_part(store, other)
    assert found is None and reason is not None and "belongs to another part" in reason
    with pytest.raises(CorruptObjectError, match="belongs to another part"):
        verify_record(store, record_key(other.part_key))


def test_the_record_of_other_tensors(place: Place) -> None:
    store = place("store")
    write_part(store, SHARD, DATA)
    found, reason = find_part(store, replace(SHARD, tensors=(norm("a"), norm("c"))))
    assert found is None and reason is not None and "lists other tensors" in reason


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_truncated_record(place: Place, cut: int) -> None:
    store = place("store")
    write_part(store, SHARD, DATA)
    key = record_key(SHARD.part_key)
    store.write(key, store.read(key)[:cut])
    found, reason = find_part(store, SHARD)
    assert found is None and reason is not None and "is damaged" in reason
    verify_part(store, SHARD.part_key)  # the record is reported by itself
    with pytest.raises(CorruptObjectError, match="is damaged"):
        verify_record(store, key)


def test_a_changed_record_fails_its_checksum(place: Place) -> None:
    store = place("store")
    write_part(store, SHARD, DATA)
    key = record_key(SHARD.part_key)
    store.write(key, store.read(key).replace(b"26", b"27", 1))
    with pytest.raises(CorruptObjectError, match="its checksum differs"):
        read_record(store, SHARD.part_key)
