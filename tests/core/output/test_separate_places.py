"""Inputs, destination and store must be separate places, however their addresses are spelled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.errors import DestinationError
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.storage.store import Store


def save_adapter(folder: Path, base: dict[str, torch.Tensor]) -> None:
    """Write a LoRA of rank 1 on one weight."""
    module = "model.layers.0.self_attn.q_proj"
    rows, columns = base[f"{module}.weight"].shape
    prefix = f"base_model.model.{module}"
    folder.mkdir()
    factors = {f"{prefix}.lora_A.weight": torch.ones(1, columns), f"{prefix}.lora_B.weight": torch.ones(rows, 1)}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def two(make_models: Callable[..., Any]) -> Any:
    return make_models(num_experts=2, layers=1)


@pytest.mark.parametrize(
    "spelled",
    ["link", "base/../base", "other/../base", "file://{root}/link", "link/inside", "expert0/", "tokens", "held"],
)
def test_a_destination_that_is_an_input_is_refused(two: Any, pipeline: Any, tmp_path: Path, spelled: str) -> None:
    """Each of these replaced the model before, with --overwrite."""
    (tmp_path / "link").symlink_to(two.base)
    (tmp_path / "other").mkdir()
    shutil.copytree(two.base, tmp_path / "tokens")
    keys: dict[str, Any] = {}
    if spelled == "tokens":
        vocabulary = json.dumps({"model": {"vocab": {f"t{row}": row for row in range(50)}}})
        for folder in (two.base, *two.experts, tmp_path / "tokens"):
            (folder / "tokenizer.json").write_text(vocabulary)
        keys = {"tokenizer_source": str(tmp_path / "tokens")}
    if spelled == "held":  # the destination holds the file that an expert links to
        (tmp_path / "held").mkdir()
        weights = two.experts[1] / "model.safetensors"
        shutil.move(weights, tmp_path / "held/model.safetensors")
        weights.symlink_to(os.path.relpath(tmp_path / "held/model.safetensors", two.experts[1]))
    before = content(tmp_path)
    place = spelled.format(root=tmp_path) if "://" in spelled else str(tmp_path / spelled)
    with pytest.raises(DestinationError, match=r"is the location of the input model|which this merge reads"):
        pipeline(two.recipe("linear", **keys), place, overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("place", ["lora", "lora/out"])
def test_an_adapter_s_folder_is_an_input(two: Any, pipeline: Any, tmp_path: Path, place: str) -> None:
    save_adapter(tmp_path / "lora", two.base_tensors)
    recipe = two.recipe("linear") | {"models": [{"model": f"{two.base}+{tmp_path / 'lora'}"}]}
    before = content(tmp_path / "lora")
    with pytest.raises(DestinationError, match="is the location of the input model"):
        pipeline(recipe, tmp_path / place, overwrite=True)
    assert content(tmp_path / "lora") == before


@pytest.mark.parametrize(
    ("out", "store", "message"),
    [
        ("store/out", "store", "is inside the store"),
        ("link/out", "store", "is inside the store"),
        ("store", "store", "is inside the store"),
        ("all", "all/store", "contains the store"),
        ("out", "base/store", "is inside the input model"),
        ("out", "base", "is inside the input model"),
    ],
)
def test_destination_and_store_are_separate(
    two: Any, pipeline: Any, tmp_path: Path, out: str, store: str, message: str
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    before = content(tmp_path)
    with pytest.raises(DestinationError, match=message):
        pipeline(two.recipe("linear"), tmp_path / out, store=tmp_path / store)
    assert content(tmp_path) == before


def test_inputs_beside_or_below_the_store_are_allowed(two: Any, pipeline: Any, tmp_path: Path) -> None:
    """A registry of experts below the store's prefix; weights that are links to another disk."""
    (tmp_path / "disk").mkdir()
    shutil.move(two.experts[0] / "model.safetensors", tmp_path / "disk/weights.safetensors")
    (two.experts[0] / "model.safetensors").symlink_to(tmp_path / "disk/weights.safetensors")
    shutil.move(two.base, tmp_path / "store/registry/base")
    recipe = two.recipe("linear") | {"base_model": str(tmp_path / "store/registry/base")}
    assert pipeline(recipe, tmp_path / "disk/out", store=tmp_path / "store").shards_done > 0


def test_on_s3(two: Any, pipeline: Any, s3_root: Any) -> None:
    store = Store(s3_root.uri, s3_root.storage_options)
    for path in two.base.iterdir():
        store.write(f"base/{path.name}", path.read_bytes())
    before = {info.key: info.etag for info in store.list("")}
    given = two.recipe("linear", storage_options=s3_root.storage_options) | {"base_model": f"{s3_root.uri}/base"}
    recipe = recipe_from_mapping(given)
    same = s3_root.uri.replace("s3://", "s3a://")
    places = [f"{same}/base", f"{s3_root.uri}//base", f"{s3_root.uri}/x/../base", f"{same}//base/out", s3_root.uri]
    for place in places:
        with pytest.raises(DestinationError, match="is the location of the input model"):
            pipeline(recipe, place, overwrite=True)
    with pytest.raises(DestinationError, match="is inside the store"):
        pipeline(recipe, f"{s3_root.uri}/store//out", store=f"{same}/store")
    assert {info.key: info.etag for info in store.list("")} == before
