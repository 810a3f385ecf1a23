"""Kept sums are superseded by a set that contains theirs, and only by one of the same matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.cache.inventory import take_inventory
from eigenmerge.core.cache.sealed_tensors import write_sealed
from eigenmerge.core.cache.superseded import superseded_sums
from eigenmerge.core.storage.store import Store


def keep(store: Store, matrix: str, members: str) -> str:
    key = f"sums/{matrix}/{len(members):06d}-{members or 'none'}.safetensors"
    write_sealed(store, key, {"sum": torch.ones(2)}, {"form": "sum", "members": list(members)})
    return key


def found(store: Store) -> frozenset[str]:
    return superseded_sums(store, take_inventory(store))


def test_a_larger_set_of_the_same_matrix(place: Callable[[str], Store]) -> None:
    store = place("store")
    small, _ = keep(store, "m", "ab"), keep(store, "m", "cab")
    keep(store, "other", "ab")
    assert found(store) == {small}


def test_sets_that_overlap_both_stay(place: Callable[[str], Store]) -> None:
    store = place("store")
    keep(store, "m", "ab")
    keep(store, "m", "bc")
    assert found(store) == frozenset()


def test_an_expert_that_occurs_twice_counts_twice(tmp_path) -> None:
    store = Store(str(tmp_path))
    keep(store, "m", "aa")
    keep(store, "m", "abc")
    assert found(store) == frozenset()
    keep(store, "m", "aab")
    assert found(store) == {"sums/m/000002-aa.safetensors"}


def test_damaged_and_foreign_sets_supersede_nothing_and_are_kept(place: Callable[[str], Store]) -> None:
    store = place("store")
    keep(store, "m", "a")
    large = keep(store, "m", "ab")
    content = store.read(large)
    for damaged in (b"", content[:20], b"not ours"):
        store.write(large, damaged)
        assert found(store) == frozenset()
    write_sealed(store, large, {"sum": torch.ones(2)}, {"form": "sum"})
    assert found(store) == frozenset()
    write_sealed(store, large, {"sum": torch.ones(2)}, {"form": "sum", "members": ["a", "b"]})
    assert found(store) == {"sums/m/000001-a.safetensors"}


def test_a_set_that_was_deleted_meanwhile(tmp_path) -> None:
    store = Store(str(tmp_path))
    keep(store, "m", "a")
    large = keep(store, "m", "ab")
    inventory = take_inventory(store)
    store.delete([large])
    assert superseded_sums(store, inventory) == frozenset()


@settings(deadline=None, max_examples=30)
@given(st.sets(st.text("abcd", max_size=4).map(lambda text: "".join(sorted(text))), max_size=5))
def test_every_set_that_stays_is_contained_in_no_other(members: set[str]) -> None:
    store = Store("memory://superseded")
    store.delete([info.key for info in store.list("")])
    keys = {keep(store, "m", text): text for text in members}
    gone = found(store)

    def contains(larger: str, smaller: str) -> bool:
        return larger != smaller and all(larger.count(letter) >= smaller.count(letter) for letter in smaller)

    for key, text in keys.items():
        assert (key in gone) == any(contains(other, text) for other in members)
