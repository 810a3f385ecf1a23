"""Merges of every kind of tensor and dtype that checkpoints contain."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.planning.plan import Plan

from ..cpu_unit import cpu_seconds, cpu_unit

Pipeline = Callable[..., Any]
Tensors = dict[str, torch.Tensor]
Load = Callable[[Path], Tensors]


@pytest.fixture
def save_models(tmp_path: Path, save_model: Callable[..., Path]) -> Callable[..., Any]:
    """Save a base and experts and return their recipe."""

    def make(
        base: Tensors,
        experts: list[Tensors],
        method: str = "swudi_a",
        config: Mapping[str, Any] | None = None,
        **keys: Any,
    ) -> dict[str, Any]:
        config = config or {"model_type": "test"}
        folder = save_model(tmp_path / "base", base, config)
        places = [save_model(tmp_path / f"expert{i}", tensors, config) for i, tensors in enumerate(experts)]
        return {"merge_method": method, "base_model": str(folder), "models": [str(place) for place in places], **keys}

    return make


def random(shape: tuple[int, ...], seed: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def experts_of(base: Tensors, count: int = 3, size: float = 0.1) -> list[Tensors]:
    return [
        {
            name: value + random(tuple(value.shape), 100 * index + number, size)
            for number, (name, value) in enumerate(base.items())
        }
        for index in range(1, count + 1)
    ]


def merged_by_hand(
    base: torch.Tensor, experts: list[torch.Tensor], method: str = "swudi_a", **keys: Any
) -> torch.Tensor:
    return base + merge_task_vectors([expert - base for expert in experts], method=method, **keys)


def manifest_rows(out: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((out / "eigenmerge_manifest.json").read_text())["tensors"]}


W = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_dtypes_are_computed_in_float32_and_cast_once(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load, dtype: torch.dtype
) -> None:
    base = {W: random((24, 16), 1).to(dtype)}
    experts = [{W: (base[W].float() + random((24, 16), seed, 0.1)).to(dtype)} for seed in (2, 3, 4)]
    pipeline(save_models(base, experts), tmp_path / "out")
    found = load_checkpoint(tmp_path / "out")[W]
    expected = merged_by_hand(base[W].float(), [expert[W].float() for expert in experts])
    assert found.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)
    else:
        # equal, except where the float32 result is close to the middle of two neighbors
        assert (found == expected.to(dtype)).float().mean() > 0.99
        torch.testing.assert_close(found.float(), expected, rtol=2.0**-7, atol=1e-3)


@pytest.mark.parametrize("form", ["scalar", "rows", "blocks"])
def test_float8_with_scales(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load, form: str
) -> None:
    """The formats of compressed-tensors and DeepSeek; the result is bfloat16, also in config.json."""
    rows, columns = (160, 136) if form == "blocks" else (24, 16)
    suffix = "_scale_inv" if form == "blocks" else "_scale"

    def quantized(weight: torch.Tensor) -> Tensors:
        if form == "scalar":
            scale = weight.abs().max().reshape(1) / 400
            spread = scale.reshape(1, 1)
        elif form == "rows":
            scale = weight.abs().amax(1, keepdim=True) / 400
            spread = scale
        else:
            padded = torch.zeros(math.ceil(rows / 128) * 128, math.ceil(columns / 128) * 128)
            padded[:rows, :columns] = weight.abs()
            scale = padded.reshape(2, 128, 2, 128).amax((1, 3)) / 400
            spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
        return {W: (weight / spread).to(torch.float8_e4m3fn), W + suffix: scale.float()}

    def numbers(stored: Tensors) -> torch.Tensor:
        scale = stored[W + suffix]
        if form == "blocks":
            scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
        return stored[W].float() * scale

    weight = random((rows, columns), 1)
    stored = [quantized(weight)] + [quantized(weight + random((rows, columns), seed, 0.3)) for seed in (2, 3)]
    method = {"scalar": "compressed-tensors", "rows": "compressed-tensors", "blocks": "fp8"}[form]
    quantization = {"quant_method": method} | ({"weight_block_size": [128, 128]} if form == "blocks" else {})
    config = {"model_type": "test", "quantization_config": quantization}
    pipeline(save_models(stored[0], stored[1:], config=config), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    assert set(merged) == {W} and merged[W].dtype == torch.bfloat16
    expected = merged_by_hand(numbers(stored[0]), [numbers(expert) for expert in stored[1:]])
    torch.testing.assert_close(merged[W].float(), expected, rtol=2.0**-7, atol=2e-3)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in written and "bfloat16" in (written.get("torch_dtype"), written.get("dtype"))


def test_a_stack_of_a_mixture_is_merged_matrix_by_matrix(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load
) -> None:
    stack, router = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.gate.weight"
    bias = "model.layers.0.mlp.experts.gate_up_proj_bias"
    base = {stack: random((4, 12, 8), 1), router: random((4, 8), 2), bias: random((4, 12), 3)}
    experts = experts_of(base)
    result = pipeline(save_models(base, experts), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    for index in range(4):  # gate and up projection are matrices of their own
        for rows in (slice(0, 6), slice(6, 12)):
            expected = merged_by_hand(base[stack][index, rows], [expert[stack][index, rows] for expert in experts])
            torch.testing.assert_close(merged[stack][index, rows], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(merged[router], base[router])
    mean = base[bias] + torch.stack([expert[bias] - base[bias] for expert in experts]).mean(0)
    torch.testing.assert_close(merged[bias], mean, rtol=1e-5, atol=1e-6)
    assert manifest_rows(tmp_path / "out")[stack]["num_matrices"] == 8
    assert result.decompositions_computed == 1  # counted by tensor


def test_a_mixture_of_many_small_matrices(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load
) -> None:
    names = [f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight" for layer in range(2) for e in range(6)]
    base = {name: random((8, 6), number) for number, name in enumerate(names)}
    experts = experts_of(base)
    pipeline(save_models(base, experts), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    expected = merged_by_hand(base[names[7]], [expert[names[7]] for expert in experts])
    torch.testing.assert_close(merged[names[7]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("treatment", ["mean", "matrix", "base"])
def test_convolutions(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load, treatment: str
) -> None:
    name = "encoder.conv1.weight"
    base = {name: random((8, 3, 2, 2), 1), "encoder.layers.0.w.weight": random((4, 4), 2)}
    experts = experts_of(base)
    pipeline(save_models(base, experts, conv=treatment), tmp_path / "out")
    flat = [expert[name].reshape(8, 12) for expert in experts]
    expected = {
        "mean": base[name] + torch.stack([expert[name] - base[name] for expert in experts]).mean(0),
        "matrix": merged_by_hand(base[name].reshape(8, 12), flat).reshape(8, 3, 2, 2),
        "base": base[name],
    }[treatment]
    torch.testing.assert_close(load_checkpoint(tmp_path / "out")[name], expected, rtol=1e-4, atol=1e-5)
    row = manifest_rows(tmp_path / "out")[name]
    assert row.get("matrix_shape") == ([8, 12] if treatment == "matrix" else None)


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_qkv_as_stored_or_split(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load, transposed: bool
) -> None:
    """The results differ, and the manifest names the choice. GPT-2 stores (in, out)."""
    name = "h.0.attn.c_attn.weight" if transposed else "blocks.0.attn.qkv.weight"
    shape = (8, 24) if transposed else (24, 8)
    base = {name: random(shape, 1)}
    experts = experts_of(base)
    keys = {"parameters": {"exp_time": 10.0}}
    for choice in ("stored", "split"):
        pipeline(save_models(base, experts, "swudi", qkv=choice, **keys), tmp_path / choice)
    stored, *moved = (model[name].T if transposed else model[name] for model in (base, *experts))
    parts = zip(stored.chunk(3), *(expert.chunk(3) for expert in moved), strict=True)
    split = torch.cat([merged_by_hand(b, e, "swudi", exp_time=10.0) for b, *e in parts])
    whole = merged_by_hand(stored, moved, "swudi", exp_time=10.0)
    if transposed:
        split, whole = split.T, whole.T
    torch.testing.assert_close(load_checkpoint(tmp_path / "split")[name], split, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(load_checkpoint(tmp_path / "stored")[name], whole, rtol=1e-4, atol=1e-5)
    assert (split - whole).norm() > 0.05 * (whole - base[name]).norm()
    rows = {choice: manifest_rows(tmp_path / choice)[name] for choice in ("stored", "split")}
    assert (rows["stored"]["qkv"], rows["split"]["qkv"]) == ("stored", "split")
    assert rows["split"]["num_matrices"] == 3 and "num_matrices" not in rows["stored"]


def test_tied_weights_that_some_experts_do_not_store(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load, save_model: Any
) -> None:
    """The base stores embedding and head, the first expert only the embedding, the second only the head."""
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    table = random((10, 6), 1)
    base = {embed: table, head: table.clone(), W: random((4, 6), 2)}
    first, second = table + random((10, 6), 3, 0.1), table + random((10, 6), 4, 0.1)
    weights = [base[W] + random((4, 6), seed, 0.1) for seed in (5, 6)]
    experts = [{embed: first, W: weights[0]}, {head: second, W: weights[1]}]
    pipeline(save_models(base, experts, config={"model_type": "test", "tie_word_embeddings": True}), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    mean = table + ((first - table) + (second - table)) / 2
    torch.testing.assert_close(merged[embed], mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged[head], mean, rtol=1e-5, atol=1e-6)


def test_a_head_that_experts_store_beside_the_equal_embedding_adds_nothing(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load
) -> None:
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    base = {embed: random((10, 6), 1), W: random((4, 6), 2)}
    experts = experts_of(base)
    for expert in experts:
        expert[head] = expert[embed].clone()
    pipeline(save_models(base, experts, config={"tie_word_embeddings": True}), tmp_path / "out")
    assert set(load_checkpoint(tmp_path / "out")) == {embed, W}


def test_prefixes_and_classifiers_of_encoders(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load
) -> None:
    """Experts add a prefix (`bert.`) and a classifier to the base, which is left out with a warning."""
    names = ["embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight", "pooler.dense.bias"]
    shapes: list[tuple[int, ...]] = [(10, 6), (6, 6), (6,)]
    base = {name: random(shape, number) for number, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    base["embeddings.position_ids"] = torch.arange(10).reshape(1, 10)
    plain = experts_of({name: base[name] for name in names})
    wrapped = [
        {f"bert.{name}": tensor for name, tensor in expert.items()} | {"classifier.weight": random((2, 6), 50)}
        for expert in plain
    ]
    result = pipeline(save_models(base, wrapped), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    assert set(merged) == set(base)
    query = names[1]
    expected = merged_by_hand(base[query], [expert[query] for expert in plain])
    torch.testing.assert_close(merged[query], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(merged["embeddings.position_ids"], base["embeddings.position_ids"])
    assert any("'bert.'" in warning for warning in result.warnings)
    assert any("classifier.weight" in warning for warning in result.warnings)


def test_buffers_empty_and_scalar_tensors(
    save_models: Any, pipeline: Pipeline, tmp_path: Path, load_checkpoint: Load
) -> None:
    base = {
        W: random((4, 6), 1),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "nothing.weight": torch.zeros(0, 6),
        "logit_scale": torch.tensor(2.5),
        "layers.0.rotary_emb.inv_freq": torch.ones(3),
    }
    experts = [
        base | {W: base[W] + random((4, 6), seed, 0.1), "count": torch.tensor(9), "logit_scale": torch.tensor(3.5)}
        for seed in (2, 3)
    ]
    pipeline(save_models(base, experts), tmp_path / "out")
    merged = load_checkpoint(tmp_path / "out")
    assert int(merged["count"]) == 7 and torch.equal(merged["mask"], base["mask"])
    assert merged["nothing.weight"].shape == (0, 6)
    assert float(merged["logit_scale"]) == 3.5  # a trained scalar takes the mean delta
    assert torch.equal(merged["layers.0.rotary_emb.inv_freq"], base["layers.0.rotary_emb.inv_freq"])


def test_ten_thousand_tensors_are_planned_in_seconds(tmp_path: Path) -> None:
    """A mixture with 64 small experts in each layer, planned from files on disk."""
    from eigenmerge.core.recipe.recipe import recipe_from_mapping
    from eigenmerge.core.steps.make_plan import make_plan

    tensor = torch.zeros(2, 2)
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in range(53)
        for expert in range(64)
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    assert len(names) > 10_000
    for folder in ("base", "a", "b", "c", "d"):
        (tmp_path / folder).mkdir()
        seed = ord(folder[0])
        save_file({name: tensor + seed for name in names}, tmp_path / folder / "model.safetensors", {"format": "pt"})
    recipe = recipe_from_mapping(
        {
            "merge_method": "swudi",
            "base_model": str(tmp_path / "base"),
            "models": [str(tmp_path / folder) for folder in "abcd"],
            "parameters": {"alignment_rho": 0.5},
        }
    )
    plans: list[Plan] = []
    # measured: 3.3 s, 85 units
    assert cpu_seconds(lambda: plans.append(make_plan(recipe))) < 220 * cpu_unit()
    (plan,) = plans
    assert plan.num_tensors == len(names) and len(plan.shards) <= 400
