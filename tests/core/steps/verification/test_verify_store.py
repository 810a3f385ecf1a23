"""Verification of a store: damage is found and removed with what depends on it; foreign objects are only reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from eigenmerge.core.cache.parts import record_key
from eigenmerge.core.cache.runs import recorded_run
from eigenmerge.core.cache.sealed_tensors import write_sealed
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.cache.store_marker import mark_store
from eigenmerge.core.coordination.claims import hold_run
from eigenmerge.core.errors import NoStoreError
from eigenmerge.core.run import Run
from eigenmerge.core.steps.verification.verify_store import StoreCheck, verify_store
from eigenmerge.core.storage.store import Store

from ...cache.examples import RUN_KEY, matrix, norm, plan, real_shard, spectrum, write_part
from ...store_keys import long_key

Place = Callable[[str], Store]
SPECTRUM, SUMS = long_key("spectra/w.arrow"), long_key("sums/ab/000001-x.safetensors")
FIRST, SECOND = real_shard(0, replace(matrix("w"), sums_key=SUMS)), real_shard(1, norm("n"))
CHECKED = 8  # spectrum, sums, two parts with a record each, two records of the run


@pytest.fixture
def store(place: Place) -> Store:
    """A store with two parts, a spectrum, sums and a run."""
    store = place("store")
    write_spectrum(store, SPECTRUM, spectrum(5), provenance={})
    write_sealed(store, SUMS, {"sum": torch.ones(3)}, {"form": "sum", "members": ["a"]})
    for one in (FIRST, SECOND):
        write_part(store, one, b"header--data of %d" % one.index)
    run = plan(FIRST, SECOND)
    with recorded_run(Run(run, store), "out"):
        pass
    return store


def keys(store: Store) -> set[str]:
    return {info.key for info in store.list("")}


def damage(store: Store, key: str) -> None:
    content = store.read(key)
    store.write(key, content[: len(content) // 2])


def test_an_intact_store(store: Store) -> None:
    check = verify_store(store)
    sizes = [info.size for info in store.list("")]
    assert check == StoreCheck(CHECKED, sum(sizes), (), (), ())


def test_an_empty_store_and_a_place_that_is_none(place: Place) -> None:
    store = place("store")
    with pytest.raises(NoStoreError, match="no store here"):
        verify_store(store)
    mark_store(store)
    assert verify_store(store) == StoreCheck(0, 0, (), (), ())


def test_a_damaged_object_that_nothing_proves_to_be_ours_is_kept(store: Store) -> None:
    orphan = long_key("spectra/of-no-run.arrow")
    store.write(orphan, b"the user's")
    check = verify_store(store, delete=True)
    assert [damage.key for damage in check.damaged] == [orphan] and check.removed == ()
    assert store.read(orphan) == b"the user's"


@pytest.mark.parametrize("key", [SPECTRUM, SUMS, f"runs/{RUN_KEY}/run.json", f"runs/{RUN_KEY}/objects.json"])
def test_a_damaged_object_is_removed_alone(store: Store, key: str) -> None:
    damage(store, key)
    before = keys(store)
    (found,) = verify_store(store).damaged
    assert (found.key, found.keys) == (key, (key,)) and key.rpartition("/")[2] in found.reason
    assert keys(store) == before, "nothing is removed unless asked for"
    verify_store(store, delete=True)
    assert keys(store) == before - {key}
    assert verify_store(store).damaged == ()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_part_and_record_are_removed_together(store: Store, suffix: str) -> None:
    damage(store, FIRST.part_key.removesuffix(".safetensors") + suffix)
    before = keys(store)
    (found,) = verify_store(store, delete=True).damaged
    assert found.keys == (record_key(FIRST.part_key), FIRST.part_key)
    assert keys(store) == before - set(found.keys)
    assert verify_store(store).damaged == ()


def test_a_record_without_its_part_is_damage(store: Store) -> None:
    store.delete([FIRST.part_key])
    (found,) = verify_store(store).damaged
    assert found.key == record_key(FIRST.part_key) and "its part is missing" in found.reason


def test_a_part_without_its_record_is_uncommitted(store: Store) -> None:
    store.delete([record_key(FIRST.part_key)])
    check = verify_store(store, delete=True)
    assert check.uncommitted == (FIRST.part_key,) and check.damaged == ()
    assert store.exists(FIRST.part_key) and check.num_checked == CHECKED - 2


def test_foreign_objects_are_reported_and_stay(store: Store) -> None:
    """Among them sums of an earlier version, whose format is that of the sums of this one."""
    foreign = ("notes.txt", "operators/ab/cd/000002-x.safetensors", "parts/0.bak", "spectra/w.txt")
    for key in foreign:
        store.write(key, store.read(SUMS))
    check = verify_store(store, delete=True)
    assert set(check.foreign) == set(foreign) and check.damaged == () and check.num_checked == CHECKED
    assert set(foreign) <= keys(store)


def test_claims_and_probes_are_not_checked(store: Store) -> None:
    claim, probe = long_key("claims/x.json"), long_key("probes/x")
    store.write(claim, b"{")
    store.write(probe, b"")
    with hold_run(store, RUN_KEY):
        assert verify_store(store) == verify_store(store, delete=True)
        assert verify_store(store).num_checked == CHECKED
    assert store.exists(claim) and store.exists(probe)
