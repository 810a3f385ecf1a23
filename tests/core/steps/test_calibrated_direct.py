"""SVC after direct methods, from a recipe to a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.svd.svc import apply_svc
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe

SVC = {"svc": {"alpha": 0.3}}
METHODS = {
    "average": {},
    "task_arithmetic": {"weight": 1.0, "lambda": 0.3},
    "ties": {"weight": 1.0, "density": 0.4},
    "breadcrumbs": {"weight": 1.0, "density": 0.8, "gamma": 0.1},
    "model_stock": {},
    "sce": {},
}


def deltas(models: Any, name: str) -> list[torch.Tensor]:
    return [expert[name].double() - models.base_tensors[name].double() for expert in models.expert_tensors]


def is_calibrated(name: str) -> bool:
    return "_proj" in name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_pipeline_equals_the_tensor_call(make_models: Any, pipeline: Any, tmp_path: Path, method: str) -> None:
    models = make_models(layers=1)
    keys = {"parameters": METHODS[method], "arithmetic": "float64", "out_dtype": "float32"}
    result = pipeline(models.recipe(method, calibration=SVC, **keys), tmp_path / "out")
    pipeline(models.recipe(method, **keys), tmp_path / "plain", store=tmp_path / "other")
    merged, plain = load_file(tmp_path / "out/model.safetensors"), load_file(tmp_path / "plain/model.safetensors")
    for name, base in models.base_tensors.items():
        if not is_calibrated(name):
            assert torch.equal(merged[name], plain[name]), name
            continue
        parameters = {key: [value] * 3 if key in ("weight", "density", "gamma") else value
                      for key, value in METHODS[method].items()}  # fmt: skip
        delta = merge_task_vectors(
            deltas(models, name), method=method, base=base.double(), calibration=SVC, **parameters
        )
        torch.testing.assert_close(merged[name].double(), base.double() + delta, rtol=1e-6, atol=1e-8)
        assert not torch.allclose(merged[name], plain[name], atol=1e-5), f"{name} is not calibrated"
    assert result.decompositions_computed == sum(map(is_calibrated, merged))
    rows = {row["name"]: row for row in json.loads((tmp_path / "out/eigenmerge_manifest.json").read_text())["tensors"]}
    for name, row in rows.items():
        assert ("rank" in row) == is_calibrated(name)
        assert ("calibrated by svc" in row["reason"]) == is_calibrated(name)


def test_the_base_that_linear_averages_is_no_expert(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    """Like mergekit, linear with a base_model averages the base too. Its task vector is 0, and N does not count it."""
    models = make_models(layers=1)
    keys = {"parameters": {"weight": 1.0}, "arithmetic": "float64", "out_dtype": "float64"}
    pipeline(models.recipe("linear", calibration={"svc": {"count": "all"}}, **keys), tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    for name in filter(is_calibrated, merged):
        own = deltas(models, name)
        expected = apply_svc(sum(own) / 4, InMemoryTaskVectors(own), 1 / 3)
        torch.testing.assert_close(merged[name] - models.base_tensors[name].double(), expected, rtol=1e-9, atol=1e-12)


def test_another_alpha_reads_no_expert(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    models, store = make_models(layers=1), tmp_path / "store"
    recipes = [
        models.recipe("task_arithmetic", calibration={"svc": options}, parameters={"weight": 1.0, "lambda": 0.3})
        for options in ({}, {"alpha": 0.9})
    ]
    first = pipeline(recipes[0], tmp_path / "a", store=store)
    second = pipeline(recipes[1], tmp_path / "b", store=store)
    assert first.decompositions_computed == 7
    assert (second.decompositions_computed, second.decompositions_reused) == (0, 7)
    fresh = pipeline(recipes[1], tmp_path / "c", store=tmp_path / "fresh")
    assert second.bytes_read < fresh.bytes_read
    files = [tmp_path / name / "model.safetensors" for name in "abc"]
    assert files[1].read_bytes() == files[2].read_bytes() != files[0].read_bytes()


def test_rounding_of_the_base_is_no_direction(save_model: Any, pipeline: Any, tmp_path: Path) -> None:
    """Two rank-1 experts that share a direction, below a base that is 1e4 times larger: as if the base were 0."""
    name, generator = "layers.0.w.weight", torch.Generator().manual_seed(0)
    base = {name: torch.randint(-8, 8, (24, 16), generator=generator).float()}
    left, right = torch.randn(24, 1, generator=generator), torch.randn(1, 16, generator=generator)
    vectors = [2.0**-12 * (left @ right).mul(64).round() / 64, 2.0**-12 * (left @ right.flip(1)).mul(64).round() / 64]
    places = [save_model(tmp_path / f"e{i}", {name: base[name] + vector}) for i, vector in enumerate(vectors)]
    assert all(torch.equal(base[name] + v - base[name], v) for v in vectors), "the experts hold the deltas exactly"
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(save_model(tmp_path / "base", base)),
        "models": [str(place) for place in places],
        "parameters": {"weight": 1.0, "lambda": 0.3},
        "calibration": {"svc": {}},
        "out_dtype": "float64",
    }
    pipeline(recipe, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")[name] - base[name].double()
    exact = [vector.double() for vector in vectors]
    expected = apply_svc(0.3 * sum(exact), InMemoryTaskVectors(exact), 0.5)
    assert (found - expected).norm() / expected.norm() < 2e-3  # base + delta is added in float32: 2^-24 * 8 / 2^-12


def test_stacks_and_transposed_weights_are_calibrated_as_matrices(
    save_model: Any, pipeline: Any, tmp_path: Path
) -> None:
    """Every expert of a mixture, gate and up separately, and weights stored (in, out), as spectral methods cut them."""
    generator = torch.Generator().manual_seed(1)
    name = "model.layers.0.mlp.experts.gate_up_proj"  # GPT-OSS: (E, in, 2 out), gate and up interleaved
    config = {"model_type": "gpt_oss", "num_local_experts": 2, "hidden_size": 6, "intermediate_size": 4}
    base = {name: torch.randn(2, 6, 8, generator=generator)}
    vectors = [torch.randn(2, 6, 8, generator=generator) * 0.1 for _ in range(3)]
    places = [save_model(tmp_path / f"e{i}", {name: base[name] + v}, config) for i, v in enumerate(vectors)]
    common = {
        "base_model": str(save_model(tmp_path / "base", base, config)),
        "models": [str(place) for place in places],
        "calibration": SVC,
        "arithmetic": "float64",
        "out_dtype": "float64",
    }
    recipe = {"merge_method": "average", **common}
    plan = make_plan(read_recipe(recipe))
    (tensor,) = (tensor for shard in plan.shards for tensor in shard.tensors)
    spectral = make_plan(read_recipe({"merge_method": "star", **common}))
    (cut_alike,) = (tensor for shard in spectral.shards for tensor in shard.tensors)
    assert [view.label for view in tensor.views] == [view.label for view in cut_alike.views] and tensor.in_out
    pipeline(recipe, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")[name] - base[name].double()
    exact = [(base[name] + v).double() - base[name].double() for v in vectors]
    for expert in range(2):
        for half in range(2):
            own = [v[expert, :, half::2].T for v in exact]
            expected = apply_svc(sum(own) / 3, InMemoryTaskVectors(own), 0.3)
            torch.testing.assert_close(found[expert, :, half::2].T, expected, rtol=1e-9, atol=1e-12)


def test_weights_of_zero_and_the_base_are_no_experts(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    models = make_models(layers=1)
    recipe = models.recipe("task_arithmetic", calibration={"svc": {"count": "all"}}, parameters={"lambda": 0.3})
    for model, weight in zip(recipe["models"], (1.0, 1.0, 0.0), strict=True):
        model["parameters"] = {"weight": weight}
    pipeline(recipe, tmp_path / "zero")
    recipe["models"].pop()
    pipeline(recipe, tmp_path / "without", store=tmp_path / "other")
    zero, without = (load_file(tmp_path / name / "model.safetensors") for name in ("zero", "without"))
    for name in filter(is_calibrated, zero):
        torch.testing.assert_close(zero[name], without[name], rtol=1e-6, atol=1e-8)


def test_one_model_is_not_calibrated(make_models: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=2, layers=1)
    rules = [{"match": "*.q_proj.weight", "method": "ties"}]
    plan = make_plan(read_recipe(models.recipe("swudi", calibration=SVC, rules=rules)))
    by_name = {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}
    assert by_name["model.layers.0.self_attn.q_proj.weight"].calibration == SVC
    embeddings = models.recipe("swudi", calibration=SVC, rules=[{"match": "*embed*", "method": "ties"}])
    plan = make_plan(read_recipe(embeddings))
    by_name = {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}
    assert not by_name["model.embed_tokens.weight"].calibration


def test_without_a_base_and_as_an_adapter_one_line_says_why_not(make_models: Any) -> None:
    models = make_models(num_experts=2, layers=1)
    recipe = models.recipe("linear", calibration=SVC, parameters={"weight": 1.0})
    del recipe["base_model"]
    with pytest.raises(RecipeError, match="calibration: svc calibrates what a merge adds to base_model"):
        read_recipe(recipe)
