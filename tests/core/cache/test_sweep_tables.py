"""Tables of sweeps: every kind of row comes back, and damage is found."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from eigenmerge.core.cache.sweep_tables import (
    SweepRow,
    check_best_recipe,
    read_sweep_table,
    sweep_object_key,
    to_table,
    write_best_recipe,
    write_sweep_table,
)
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.store import Store

KEY, OTHER = "ab" * 32, "cd" * 32
ROWS = [
    SweepRow("one", {"exp_time": 1.5, "rank_rule": "entropy"}, {"accuracy": 0.25, "gcv": None}, seconds=2.0),
    SweepRow("two", {"exp_time": 2.0, "rank_rule": None}, status="failed", error="no items"),
    SweepRow("three", {"exp_time": 3.0, "rank_rule": "none"}, status="pruned", steps=((0, 0.5), (1, 0.25))),
]


def test_rows_come_back(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ObjectNotFoundError):
        read_sweep_table(store, KEY)
    write_sweep_table(store, KEY, ROWS)
    assert read_sweep_table(store, KEY) == ROWS
    write_sweep_table(store, KEY, [])
    assert read_sweep_table(store, KEY) == []


def test_columns_have_the_types_of_their_values() -> None:
    rows = [
        SweepRow("a", {"steps_of": 1, "ratio": 1, "flag": True, "mixed": 1}),
        SweepRow("b", {"steps_of": 2, "ratio": 0.5, "flag": None, "mixed": "all"}),
    ]
    schema = to_table(rows).schema
    found = {name: str(schema.field(name).type) for name in ("steps_of", "ratio", "flag", "mixed")}
    assert found == {"steps_of": "int64", "ratio": "double", "flag": "bool", "mixed": "string"}
    assert to_table(rows).to_pylist()[1]["mixed"] == "all"


def test_the_table_of_another_sweep_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_sweep_table(store, KEY, ROWS)
    store.write(sweep_object_key(OTHER, "table.arrow"), store.read(sweep_object_key(KEY, "table.arrow")))
    with pytest.raises(CorruptObjectError, match="is not the table of this sweep"):
        read_sweep_table(store, OTHER)


def test_a_changed_number_is_found(tmp_path: Path) -> None:
    store, key = Store(str(tmp_path)), sweep_object_key(KEY, "table.arrow")
    write_sweep_table(store, KEY, ROWS)
    data = store.read(key)
    number = struct.pack("<d", 0.25)
    store.write(key, data.replace(number, struct.pack("<d", 0.75), 1))
    with pytest.raises(CorruptObjectError, match="fails its checksum"):
        read_sweep_table(store, KEY)


def test_a_changed_recipe_is_found(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    key = write_best_recipe(store, KEY, "merge_method: swudi")
    check_best_recipe(store, key)
    store.write(key, store.read(key).replace(b"swudi", b"wudi_"))
    with pytest.raises(CorruptObjectError, match="was changed"):
        check_best_recipe(store, key)
