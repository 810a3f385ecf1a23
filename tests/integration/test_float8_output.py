"""Merges that are written as float8: the bytes, the error, what reads them, verification and resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.steps.verification.verify_checkpoint import verify_checkpoint
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.store import Store

LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (50, 144),
    LAYER + "self_attn.q_proj.weight": (144, 144),
    LAYER + "mlp.gate.weight": (16, 144),
    LAYER + "mlp.experts.gate_up_proj": (3, 160, 144),
    LAYER + "mlp.shared_expert.gate_proj.weight": (272, 144),
    LAYER + "mlp.shared_expert_gate.weight": (1, 144),
    LAYER + "input_layernorm.weight": (144,),
    "model.visual.blocks.0.attn.qkv.weight": (48, 16),
    "lm_head.weight": (50, 144),
}
FLOAT8 = [LAYER + name for name in ("self_attn.q_proj.weight", "mlp.shared_expert.gate_proj.weight")]
STACK = LAYER + "mlp.experts.gate_up_proj"
CONFIG = {"model_type": "qwen3_moe", "num_hidden_layers": 1, "num_experts": 16, "torch_dtype": "bfloat16"}


@pytest.fixture
def places(tmp_path: Path, save_model: Callable[..., Path]) -> list[Path]:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    return [save_model(tmp_path / f"model{seed}", weights(seed), CONFIG) for seed in range(3)]


def recipe(places: list[Path], **keys: Any) -> dict[str, Any]:
    models = [str(place) for place in places[1:]]
    return {"merge_method": "linear", "base_model": str(places[0]), "models": models, **keys}


def without_stack(places: list[Path], save_model: Callable[..., Path]) -> list[Path]:
    for place in places:
        save_model(place, {k: v for k, v in load_file(place / "model.safetensors").items() if k != STACK}, CONFIG)
    return places


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("form", ["block", "channel"])
def test_what_is_written_and_read_again(
    places: list[Path], tmp_path: Path, pipeline: Callable[..., Any], save_model: Callable[..., Path], form: str
) -> None:
    suffix = "_scale_inv" if form == "block" else "_scale"
    expected = [*FLOAT8, STACK] if form == "block" else FLOAT8
    if form == "channel":
        without_stack(places, save_model)
    out = tmp_path / "out"
    pipeline(recipe(places, output={"float8": form}), out)
    pipeline(recipe(places), tmp_path / "plain")
    plain, found = load_file(tmp_path / "plain/model.safetensors"), load_file(out / "model.safetensors")
    assert {name for name, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn} == set(expected)
    assert set(found) == set(plain) | {name + suffix for name in expected}
    assert all(torch.equal(found[name], plain[name]) for name in plain if name not in expected)
    rows = {row["name"]: row for row in json.loads((out / "eigenmerge_manifest.json").read_text())["tensors"]}
    listing, reader = list_model(str(out)), TensorReader()
    for name in expected:
        weight, scale = plain[name], found[name + suffix]
        *stack, num_rows, columns = weight.shape
        if form == "block":
            assert scale.shape == (*stack, -(-num_rows // 128), -(-columns // 128))
            spread = scale.repeat_interleave(128, -2)[..., :num_rows, :].repeat_interleave(128, -1)[..., :columns]
        else:
            assert scale.shape == (num_rows, 1)
            spread = scale
        assert scale.dtype == torch.float32
        assert torch.equal(found[name].float(), (weight / spread).to(torch.float8_e4m3fn).float())
        read = reader.read(listing.tensors[name])
        assert torch.equal(read, found[name].float() * spread)
        error = float((read.double() - weight.double()).norm() / weight.double().norm())
        assert rows[name]["error"] == pytest.approx(error, rel=1e-4) and 0.005 < error < 0.04
        assert rows[name]["stored_as"] == [name, name + suffix]


def test_config_names_what_is_not_float8(places: list[Path], tmp_path: Path, pipeline: Callable[..., Any]) -> None:
    from transformers.utils.quantization_config import FineGrainedFP8Config

    pipeline(recipe(places, output={"float8": "block"}), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    quantization = config["quantization_config"]
    kept = ["mlp.gate", "mlp.shared_expert_gate"]
    assert set(quantization.pop("modules_to_not_convert")) == {
        *(LAYER + name for name in kept),
        "model.visual.blocks.0.attn.qkv",
        "lm_head",
    }
    assert quantization.pop("fmt") == "e4m3"  # DeepSeek's; transformers ignores it
    written = FineGrainedFP8Config(**quantization).to_dict()
    assert {key: written[key] for key in quantization} == quantization


def test_config_of_one_scale_for_each_row(
    places: list[Path], tmp_path: Path, pipeline: Callable[..., Any], save_model: Callable[..., Path]
) -> None:
    with pytest.raises(RecipeError, match=r"output.float8: channel: .*gate_up_proj is a stack of experts.*use block"):
        pipeline(recipe(places, output={"float8": "channel"}), tmp_path / "out")
    without_stack(places, save_model)
    pipeline(recipe(places, output={"float8": "channel"}), tmp_path / "out")
    quantization = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors" and quantization["format"] == "float-quantized"
    assert quantization["config_groups"]["group_0"]["weights"]["strategy"] == "channel"
    assert "lm_head" in quantization["ignore"] and LAYER + "mlp.gate" in quantization["ignore"]


def test_verify_resume_workers_and_merging_it_again(
    places: list[Path], tmp_path: Path, pipeline: Callable[..., Any]
) -> None:
    keys = {"merge_method": "swudi", "output": {"float8": "block", "max_shard_size": "100KB"}}
    first = pipeline(recipe(places) | keys, tmp_path / "one")
    again = pipeline(recipe(places) | keys, tmp_path / "two")
    fresh = pipeline(recipe(places) | keys, tmp_path / "three", store=tmp_path / "other")
    assert first.shards_reused == fresh.shards_reused == 0 and again.shards_done == 0
    assert len(digest(tmp_path / "one")) > 1
    assert digest(tmp_path / "one") == digest(tmp_path / "two") == digest(tmp_path / "three")
    found = verify_checkpoint(Store(str(tmp_path / "one")), sample=9)
    assert found.problems == [] and [one.outcome for one in found.recomputed] == ["identical"] * 9
    merged = [tmp_path / "one", places[1], places[2]]
    pipeline(recipe(merged, merge_method="average"), tmp_path / "next")
    assert load_file(tmp_path / "next/model.safetensors")[FLOAT8[0]].dtype == torch.bfloat16


def test_nothing_to_store_as_float8(
    tmp_path: Path, save_model: Callable[..., Path], pipeline: Callable[..., Any]
) -> None:
    places = [save_model(tmp_path / name, {LAYER + "norm.weight": torch.ones(16)}, CONFIG) for name in ("b", "e")]
    with pytest.raises(RecipeError, match="no linear layers to store as float8"):
        pipeline(recipe(places, output={"float8": "block"}), tmp_path / "out")
    with pytest.raises(RecipeError, match="float8 is for checkpoints"):
        pipeline(recipe(places, output={"format": "adapter", "float8": "block"}), tmp_path / "out")
