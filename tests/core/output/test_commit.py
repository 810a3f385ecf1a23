"""The index of a checkpoint: its content, and that a checkpoint of one file has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from eigenmerge.core.formats.file_names import INDEX_NAME
from eigenmerge.core.output.commit import write_index
from eigenmerge.core.storage.store import Store

from .examples import adapter, fused, make_checkpoint, norm, small_plan, weight


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_the_index_names_the_file_of_every_tensor(store: Store, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(small_plan())
    checkpoint.write(store)
    index = json.loads(store.read(INDEX_NAME))
    stored: dict[str, str] = {}
    for name in checkpoint.files:
        with safe_open(tmp_path / name, framework="pt") as file:
            stored |= dict.fromkeys(file.keys(), name)
    assert index["weight_map"] == stored and len(stored) == 4
    assert list(index["weight_map"]) == sorted(stored)
    assert index["metadata"] == {"total_size": 2 * 4 * 3 * 4 + 2 * 3 * 4}


def test_one_file_has_no_index(store: Store) -> None:
    write_index(store, small_plan(((weight("a"),), (norm("b"),))))
    assert not store.exists(INDEX_NAME)


def test_factors_of_an_adapter_have_their_stored_names(store: Store) -> None:
    write_index(store, small_plan(((adapter("w"),),), ((fused("h.0.attn.c_attn.weight"),),)))
    names = json.loads(store.read(INDEX_NAME))["weight_map"]
    assert set(names) == {
        "base_model.model.w.lora_A.weight",
        "base_model.model.w.lora_B.weight",
        "h.0.attn.c_attn.weight",
    }


def test_the_bytes_depend_on_the_plan_only(store: Store) -> None:
    write_index(store, small_plan())
    first = store.read(INDEX_NAME)
    write_index(store, small_plan(recipe={"merge_method": "ties"}))
    assert store.read(INDEX_NAME) == first and first.endswith(b"}\n")
