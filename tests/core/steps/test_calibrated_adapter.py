"""SVC after a weighted sum of adapters, written as an adapter: the factors equal the dense computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.svd.svc import apply_svc
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
SHAPES = {Q: (32, 32), DOWN: (32, 64)}
RANKS = (2, 3, 4)
SVC = {"calibration": {"svc": {"alpha": 0.4}}, "output": {"format": "adapter"}, "out_dtype": "float32"}


def write_adapter(folder: Path, rank: int, seed: int, modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Write a PEFT adapter, and return its dense deltas by module; experts share a direction."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    deltas: dict[str, torch.Tensor] = {}
    for module in modules:
        rows, columns = SHAPES[module]
        down, up = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
        up[:, 0], down[0] = torch.linspace(-1, 1, rows), torch.linspace(1, -1, columns)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        deltas[module] = 2.0 * up.double() @ down.double()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    names = sorted(module.rsplit(".", 1)[-1] for module in modules)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return deltas


@pytest.fixture
def adapters(make_models: Any, tmp_path: Path) -> tuple[Any, list[str], list[dict[str, torch.Tensor]]]:
    models = make_models(num_experts=0, layers=1)
    folders = [tmp_path / f"a{index}" for index in range(len(RANKS))]
    deltas = [
        write_adapter(folder, rank, index, (Q, DOWN) if index else (Q,))  # one adapter leaves down_proj alone
        for index, (folder, rank) in enumerate(zip(folders, RANKS, strict=True))
    ]
    return models, [str(folder) for folder in folders], deltas


def recipe_of(models: Any, folders: list[str], method: str, **keys: Any) -> dict[str, Any]:
    return {**models.recipe(method, **SVC), "models": [{"model": folder} for folder in folders], **keys}


def written(folder: Path, module: str) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    at = f"base_model.model.{module}.lora_"
    return tensors[f"{at}B.weight"].double() @ tensors[f"{at}A.weight"].double()


@pytest.mark.parametrize(
    ("method", "parameters", "weights"),
    [("task_arithmetic", {"lambda": 0.3, "weight": 2.0}, [0.6] * 3), ("average", {"scale": 1.5}, [0.5] * 3)],
)
def test_it_equals_the_dense_computation(
    adapters: Any, pipeline: Any, tmp_path: Path, method: str, parameters: dict[str, float], weights: list[float]
) -> None:
    models, folders, deltas = adapters
    recipe = recipe_of(models, folders, method, parameters=parameters)
    result = pipeline(recipe, tmp_path / "out")
    assert result.decompositions_computed == 2
    for module, total in ((Q, sum(RANKS)), (DOWN, sum(RANKS[1:]))):
        zero = torch.zeros(SHAPES[module], dtype=torch.float64)
        experts = [delta.get(module, zero) for delta in deltas]
        merged = sum((w * v for w, v in zip(weights, experts, strict=True)), zero)
        expected = apply_svc(merged, InMemoryTaskVectors(experts), alpha=0.4)
        found = written(tmp_path / "out", module)
        assert torch.linalg.matrix_norm(found - expected) < 1e-6 * torch.linalg.matrix_norm(expected), module
        assert torch.linalg.matrix_norm(expected - merged) > 0.01 * torch.linalg.matrix_norm(merged)
        assert (
            len(load_file(tmp_path / "out" / "adapter_model.safetensors")[f"base_model.model.{module}.lora_A.weight"])
            == total
        )
    again = pipeline({**recipe, "calibration": {"svc": {"alpha": 0.9}}}, tmp_path / "alpha")
    assert (again.decompositions_computed, again.decompositions_reused) == (0, 2)


def test_a_whole_checkpoint_has_spectra_of_its_own(adapters: Any) -> None:
    models, folders, _ = adapters
    recipe = recipe_of(models, folders, "task_arithmetic", parameters={"lambda": 0.3})
    plans = [make_plan(read_recipe(one)) for one in (recipe, {**recipe, "output": {}})]
    keys = [
        {tensor.spectrum_key for shard in plan.shards for tensor in shard.tensors if tensor.spectrum_key}
        for plan in plans
    ]
    assert len(keys[0]) == 2 and not keys[0] & keys[1]


def test_what_is_no_weighted_sum_is_refused(adapters: Any) -> None:
    models, folders, _ = adapters
    with pytest.raises(RecipeError, match="ties does not give a low-rank delta"):
        make_plan(read_recipe(recipe_of(models, folders, "ties", parameters={"density": 0.5})))
