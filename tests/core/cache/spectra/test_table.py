"""The table of a run: the shards' own tables in the order of the plan, or the spectra where a table is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eigenmerge.core.cache.parts import shard_table_key
from eigenmerge.core.cache.run_folder import TABLE_NAME, run_object_key
from eigenmerge.core.cache.spectra.table import write_shard_table, write_spectra_table
from eigenmerge.core.cache.spectra.table_file import TableRow, read_run_table
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.planning.plan import RunSettings
from eigenmerge.core.run import Run
from eigenmerge.core.storage.store import Store

from ..examples import RUN_KEY, assert_same_numbers, fused, matrix, norm, plan, shard, spectrum

Place = Callable[[str], Store]
FIRST, SECOND = shard(0, matrix("w"), norm("n")), shard(1, fused("qkv", "q", "k"))
PLAN = plan(SECOND, FIRST, shard(2, norm("m")))
ROWS = {
    "w": TableRow("w", "spectra/w.arrow", spectrum(10)),
    "qkv[q]": TableRow("qkv[q]", "spectra/qkv-q.arrow", spectrum(20)),
    "qkv[k]": TableRow("qkv[k]", "spectra/qkv-k.arrow", spectrum(30)),
}


@pytest.fixture
def store(place: Place) -> Store:
    """Both shards' tables, and no spectrum."""
    store = place("store")
    write_shard_table(store, FIRST.part_key, [ROWS["w"]])
    write_shard_table(store, SECOND.part_key, [ROWS["qkv[q]"], ROWS["qkv[k]"]])
    return store


def table(store: Store) -> list[TableRow]:
    key = write_spectra_table(Run(PLAN, store))
    assert key == run_object_key(RUN_KEY, TABLE_NAME)
    rows = list(read_run_table(store, key))
    for row in rows:
        assert_same_numbers(row.spectrum, ROWS[row.name].spectrum)
        assert row.spectrum_key == ROWS[row.name].spectrum_key
    return rows


def names(store: Store) -> list[str]:
    return [row.name for row in table(store)]


def test_rows_are_in_the_order_of_the_plan(store: Store) -> None:
    assert names(store) == ["qkv[q]", "qkv[k]", "w"]


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "of another shard"])
def test_spectra_replace_a_table_that_cannot_be_used(store: Store, damage: str) -> None:
    key = shard_table_key(FIRST.part_key)
    content = {
        "missing": None,
        "cut": store.read(key)[:-50],
        "foreign": b"not ours",
        "of another shard": store.read(shard_table_key(SECOND.part_key)),
    }[damage]
    if content is None:
        store.delete([key])
    else:
        store.write(key, content)
    assert names(store) == ["qkv[q]", "qkv[k]"], "the spectrum is not in the store either"
    write_spectrum(store, "spectra/w.arrow", ROWS["w"].spectrum, provenance={})
    assert names(store) == ["qkv[q]", "qkv[k]", "w"]
    store.write("spectra/w.arrow", b"damaged")
    assert names(store) == ["qkv[q]", "qkv[k]"]


def test_a_shard_without_spectra_has_no_table(place: Place) -> None:
    store = place("store")
    write_shard_table(store, "parts/9.safetensors", [])
    assert list(store.list("")) == []


@pytest.mark.parametrize(
    "without",
    [plan(shard(0, norm("n"))), plan(FIRST, settings=RunSettings(spectra="none"))],
    ids=["no spectra", "none"],
)
def test_a_run_without_spectra_has_no_table(place: Place, without) -> None:
    store = place("store")
    assert write_spectra_table(Run(without, store)) is None
    assert list(store.list("")) == []
