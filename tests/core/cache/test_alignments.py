"""Tables of largest eigenvalues: one for each group of aligned layers, checked, and read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from eigenmerge.core.cache.alignments import (
    AlignedExpTimes,
    aligned_tensors,
    alignment_groups,
    missing_alignments,
    read_alignment,
    write_alignments,
)
from eigenmerge.core.cache.reports import DecomposeReport
from eigenmerge.core.cache.sealed_json import write_sealed_json
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError, StoreError
from eigenmerge.core.numerics.interference.exp_times import align_exp_times
from eigenmerge.core.storage.store import Store

from .examples import fused, matrix, norm, plan, shard

A, B = "alignments/a.json", "alignments/b.json"
QKV = replace(fused("qkv", "q", "k"), alignment_key=B)
PLAN = plan(
    shard(0, matrix("w", aligned=True), norm("n"), matrix("free")),
    shard(1, matrix("v", aligned=True), QKV),
)
REPORTS = [
    DecomposeReport(0, {"spectra/w.arrow": 4.0}, 1, 0),
    DecomposeReport(1, {"spectra/v.arrow": 1.0, "spectra/qkv-q.arrow": 2.0, "spectra/qkv-k.arrow": 0.0}, 3, 0),
]


def test_groups_are_the_spectra_of_one_alignment_key() -> None:
    assert [tensor.name for tensor in aligned_tensors(PLAN.shards[0])] == ["w"]
    assert alignment_groups(PLAN) == {
        A: ["spectra/w.arrow", "spectra/v.arrow"],
        B: ["spectra/qkv-q.arrow", "spectra/qkv-k.arrow"],
    }
    assert alignment_groups(plan(shard(0, matrix("free")))) == {}


def test_every_group_has_its_own_table(place: Callable[[str], Store]) -> None:
    store = place("store")
    assert missing_alignments(PLAN, store) == [A, B]
    write_alignments(PLAN, store, REPORTS)
    assert missing_alignments(PLAN, store) == []
    assert read_alignment(store, A) == {"spectra/w.arrow": 4.0, "spectra/v.arrow": 1.0}
    assert read_alignment(store, B) == {"spectra/qkv-q.arrow": 2.0, "spectra/qkv-k.arrow": 0.0}


def test_a_table_has_the_same_bytes_whatever_the_order_of_reports(place: Callable[[str], Store]) -> None:
    store = place("store")
    write_alignments(PLAN, store, REPORTS)
    first = store.read(A)
    write_alignments(PLAN, store, reversed(REPORTS))
    assert store.read(A) == first


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "table of another group"])
def test_damage_counts_as_missing(place: Callable[[str], Store], damage: str) -> None:
    store = place("store")
    write_alignments(PLAN, store, REPORTS)
    content = store.read(A)
    store.write(
        A,
        {
            "cut": content[:-5],
            "empty": b"",
            "changed": content.replace(b"4.0", b"5.0"),
            "table of another group": store.read(B),
        }[damage],
    )
    assert missing_alignments(PLAN, store) == [A]
    with pytest.raises(CorruptObjectError, match="alignments/a"):
        read_alignment(store, A)


@pytest.mark.parametrize("values", [None, [1.0], {"spectra/w.arrow": "4"}, {"spectra/w.arrow": None}])
def test_values_of_another_type(tmp_path, values: object) -> None:
    store = Store(str(tmp_path))
    write_sealed_json(store, A, {"format": 1, "key": A, "largest_values": values})
    with pytest.raises(CorruptObjectError, match="not the table of these layers"):
        read_alignment(store, A)


def test_a_missing_table(place: Callable[[str], Store]) -> None:
    with pytest.raises(ObjectNotFoundError):
        read_alignment(place("store"), A)
    with pytest.raises(StoreError, match="run the same command again"):
        AlignedExpTimes(place("store")).exp_time(A, "spectra/w.arrow", 10.0, 0.5)


def test_exp_times_follow_the_table_which_is_read_once(place: Callable[[str], Store]) -> None:
    store = place("store")
    write_alignments(PLAN, store, REPORTS)
    times = AlignedExpTimes(store)
    expected = align_exp_times(10.0, read_alignment(store, A), 0.5)
    assert times.exp_time(A, "spectra/w.arrow", 10.0, 0.5) == expected["spectra/w.arrow"]
    store.delete([A])
    assert times.exp_time(A, "spectra/v.arrow", 10.0, 0.5) == expected["spectra/v.arrow"]
    assert expected["spectra/w.arrow"] != expected["spectra/v.arrow"]
