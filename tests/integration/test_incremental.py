"""`keep_sums`: adding an expert to a merged set reads only that expert and the base, and gives the same result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.cache.result import MergeResult
from eigenmerge.core.output.destination import prepare_destination
from eigenmerge.core.planning.plan import Plan
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.run import Run
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.merge_run import run_plan
from eigenmerge.core.storage.store import Store

Load = Callable[[Path], dict[str, torch.Tensor]]
NUM_MATRICES = 7  # of one layer of the small Llama


def merge_plan(plan: Plan, out: Path, store: Path | str, options: dict[str, Any] | None = None) -> MergeResult:
    """Run a plan without Prefect."""
    target = prepare_destination(plan, str(out), Store(str(out)), overwrite=False)
    return run_plan(Run(plan, Store(str(store), options), options), target)


class Recipes:
    """Plans of chosen experts of a set of models."""

    def __init__(self, models: Any, **keys: Any) -> None:
        self.models, self.keys = models, keys

    def plan(self, *experts: int, method: str = "swudi", keep: bool = True, **keys: Any) -> Plan:
        recipe = self.models.recipe(method, **{**self.keys, **keys}, keep_sums=keep)
        recipe["models"] = [recipe["models"][index] for index in experts]
        return make_plan(recipe_from_mapping(recipe))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name].double() - tensor.double()).abs().max()
        assert difference <= tolerance * tensor.double().abs().max(), f"{name}: {difference}"


def sums_of(store: Path) -> list[Path]:
    return sorted(store.glob("sums/**/*.safetensors"))


def fill_with_nan(model: Path) -> None:
    """Overwrite all weights with NaN, so that a merge that reads them fails."""
    path = model / ("model.safetensors" if (model / "model.safetensors").exists() else "adapter_model.safetensors")
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start:] = b"\xff" * (len(content) - start)
    path.write_bytes(content)


def make_adapters(models: Any, count: int, rank: int = 3) -> None:
    """Replace the experts by LoRA adapters on all matrices; the second adapter leaves out one matrix."""
    for index in range(count):
        generator = torch.Generator().manual_seed(50 + index)
        folder = models.root / f"adapter{index}"
        folder.mkdir()
        factors = {}
        for name, tensor in models.base_tensors.items():
            if "_proj" in name and not (index == 1 and "layers.0.self_attn.q_proj" in name):
                stem = f"base_model.model.{name.removesuffix('.weight')}"
                factors[f"{stem}.lora_A.weight"] = 0.1 * torch.randn(rank, tensor.shape[1], generator=generator)
                factors[f"{stem}.lora_B.weight"] = 0.1 * torch.randn(tensor.shape[0], rank, generator=generator)
        save_file(factors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": "base"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        models.experts[index] = folder


def test_a_ninth_expert_reads_the_base_and_itself(
    make_models: Any, pipeline: Any, tmp_path: Path, load_checkpoint: Load
) -> None:
    models = make_models(num_experts=9)
    new, models.experts = models.experts[8], models.experts[:8]
    eight = models.write_recipe("swudi", "eight.yml", keep_sums=True)
    pipeline(eight, tmp_path / "eight", store=str(tmp_path / "store"))
    models.experts.append(new)
    nine = models.write_recipe("swudi", "nine.yml", keep_sums=True)
    later = pipeline(nine, tmp_path / "nine", store=str(tmp_path / "store"))
    one_model = sum(tensor.nbytes for tensor in models.base_tensors.values())
    assert later.bytes_read == 2 * one_model, "the base and the new expert"
    assert later.decompositions_computed == 3 * NUM_MATRICES, "one for each layer"
    assert later.kept_bytes_read > 0 and not later.warnings

    scratch = pipeline(nine, tmp_path / "scratch", store=str(tmp_path / "empty"))
    assert scratch.bytes_read == 10 * one_model
    assert_equal(load_checkpoint(tmp_path / "nine"), load_checkpoint(tmp_path / "scratch"))
    plain = models.write_recipe("swudi", "plain.yml")
    pipeline(plain, tmp_path / "plain", store=str(tmp_path / "another"))
    assert_equal(load_checkpoint(tmp_path / "nine"), load_checkpoint(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("swudi", {}),
        ("swudi_a", {}),
        ("swudi_a", {"arithmetic": "float64"}),
        ("wudi_pinv", {"arithmetic": "float64"}),
        ("wudi", {"parameters": {"optimizer": "sgd", "iterations": 50}}),
        ("swudi_soft", {"parameters": {"weight": 0.7, "scale": 0.5}}),
    ],
)
def test_experts_with_kept_sums_are_not_read(
    make_models: Any, tmp_path: Path, load_checkpoint: Load, method: str, keys: dict[str, Any]
) -> None:
    models = make_models(num_experts=5, layers=1)
    recipes = Recipes(models, **keys)
    merge_plan(recipes.plan(0, 1, 2, 3, method=method), tmp_path / "four", tmp_path / "store")
    plan = recipes.plan(0, 1, 2, 3, 4, method=method)
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    for expert in models.experts[:4]:
        fill_with_nan(expert)
    result = merge_plan(plan, tmp_path / "five", tmp_path / "store")
    assert result.decompositions_computed == NUM_MATRICES
    assert_equal(load_checkpoint(tmp_path / "five"), load_checkpoint(tmp_path / "scratch"))


def test_adding_an_adapter_gives_the_same_bytes(make_models: Any, tmp_path: Path) -> None:
    """Factors are kept instead of sums, so the order of additions does not change."""
    models = make_models(num_experts=4, layers=1)
    make_adapters(models, 4)
    recipes = Recipes(models)
    three = recipes.plan(0, 1, 2)
    merge_plan(three, tmp_path / "three", tmp_path / "store")
    plan = recipes.plan(0, 1, 2, 3)
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    for expert in models.experts[:3]:
        fill_with_nan(expert)
    result = merge_plan(plan, tmp_path / "four", tmp_path / "store")
    new = sum(shard.bytes_read for shard in recipes.plan(3).shards)
    copies = {shard.part_key for shard in three.shards} & {shard.part_key for shard in plan.shards}
    unread = sum(shard.bytes_read for shard in plan.shards if shard.part_key in copies)
    assert result.bytes_read == new - unread, "the base and the new adapter, without shards of the base alone"
    assert (tmp_path / "four/model.safetensors").read_bytes() == (tmp_path / "scratch/model.safetensors").read_bytes()


def test_svc_and_consensus_use_the_kept_factors_of_adapters(
    make_models: Any, tmp_path: Path, load_checkpoint: Load
) -> None:
    models = make_models(num_experts=3, layers=1)
    make_adapters(models, 3)
    keys = {"calibration": {"svc": {}}, "parameters": {"consensus_power": 1.0}}
    recipes = Recipes(models, **keys)
    merge_plan(recipes.plan(0, 1), tmp_path / "two", tmp_path / "store")
    plan = recipes.plan(0, 1, 2)
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    for expert in models.experts[:2]:
        fill_with_nan(expert)
    merge_plan(plan, tmp_path / "three", tmp_path / "store")
    assert_equal(load_checkpoint(tmp_path / "three"), load_checkpoint(tmp_path / "scratch"))


def test_a_dense_expert_after_adapters(make_models: Any, tmp_path: Path, load_checkpoint: Load) -> None:
    models = make_models(num_experts=4, layers=1)
    make_adapters(models, 3)
    recipes = Recipes(models, arithmetic="float64")
    merge_plan(recipes.plan(0, 1, 2), tmp_path / "three", tmp_path / "store")
    plan = recipes.plan(0, 1, 2, 3)
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    for expert in models.experts[:3]:
        fill_with_nan(expert)
    merge_plan(plan, tmp_path / "four", tmp_path / "store")
    assert_equal(load_checkpoint(tmp_path / "four"), load_checkpoint(tmp_path / "scratch"))


@pytest.mark.parametrize(
    "keys",
    [{"parameters": {"consensus_power": 1.0}}, {"calibration": {"svc": {}}}, {"parameters": {"output_exp_time": 9}}],
)
def test_methods_with_a_second_pass_read_all_experts(
    make_models: Any, tmp_path: Path, load_checkpoint: Load, keys: dict[str, Any]
) -> None:
    models = make_models(num_experts=3, layers=1)
    recipes = Recipes(models, **keys)
    merge_plan(recipes.plan(0, 1), tmp_path / "two", tmp_path / "store")
    plan = recipes.plan(0, 1, 2)
    assert any("keep_sums" in warning for warning in plan.warnings)
    merge_plan(plan, tmp_path / "three", tmp_path / "store")
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    assert_equal(load_checkpoint(tmp_path / "three"), load_checkpoint(tmp_path / "scratch"))


def test_a_method_without_sums_causes_a_warning(models: Any) -> None:
    warnings = Recipes(models).plan(0, 1, method="ties").warnings
    assert any("keep_sums" in warning and "ties" in warning for warning in warnings)
    assert not any("keep_sums" in warning for warning in Recipes(models).plan(0, 1).warnings)


def test_the_largest_subset_is_used(make_models: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=6, layers=1)
    recipes, store = Recipes(models), tmp_path / "store"
    one_model = sum(tensor.nbytes for tensor in models.base_tensors.values())
    merges = [
        ((0, 1), 2),
        ((0, 1, 2, 3), 2),  # from {0, 1}
        ((0, 1, 2, 4), 2),  # from {0, 1}, not from {0, 1, 2, 3}
        ((0, 1, 2, 3, 4), 1),  # from one of the two of four
        ((5, 0, 1), 1),  # in another order
        ((0, 1, 2, 3), 0),  # merged already: nothing is read
    ]
    for number, (experts, new) in enumerate(merges):
        result = merge_plan(recipes.plan(*experts), tmp_path / str(number), store)
        assert result.bytes_read == ((1 + new) * one_model if new else 0), experts
    again = merge_plan(recipes.plan(0, 1, 2, 3, method="swudi_soft", parameters={"scale": 0.3}), tmp_path / "x", store)
    assert again.decompositions_computed == 0, "another filter shares the spectra"


def test_another_weight_is_another_expert(make_models: Any, tmp_path: Path, load_checkpoint: Load) -> None:
    models = make_models(num_experts=3, layers=1)
    one_model = sum(tensor.nbytes for tensor in models.base_tensors.values())

    def plan(*weights: float) -> Plan:
        recipe = models.recipe("swudi", keep_sums=True)
        recipe["models"] = [
            {**model, "parameters": {"weight": weight}}
            for model, weight in zip(recipe["models"], weights, strict=False)
        ]
        return make_plan(recipe_from_mapping(recipe))

    merge_plan(plan(1.0, 0.5), tmp_path / "a", tmp_path / "store")
    changed = merge_plan(plan(1.0, 0.25, 2.0), tmp_path / "b", tmp_path / "store")
    assert changed.bytes_read == 4 * one_model, "no kept set is a subset of it"
    grown = merge_plan(plan(1.0, 0.5, 2.0), tmp_path / "c", tmp_path / "store")
    assert grown.bytes_read == 2 * one_model
    merge_plan(plan(1.0, 0.5, 2.0), tmp_path / "d", tmp_path / "empty")
    assert_equal(load_checkpoint(tmp_path / "c"), load_checkpoint(tmp_path / "d"))


def test_the_same_expert_twice_counts_twice(make_models: Any, tmp_path: Path, load_checkpoint: Load) -> None:
    models = make_models(num_experts=2, layers=1)
    recipes = Recipes(models)
    merge_plan(recipes.plan(0, 0), tmp_path / "two", tmp_path / "store")
    plan = recipes.plan(0, 0, 0, 1)
    merge_plan(plan, tmp_path / "four", tmp_path / "store")
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    assert_equal(load_checkpoint(tmp_path / "four"), load_checkpoint(tmp_path / "scratch"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "swap", "foreign"])
def test_damaged_sums_are_computed_again(make_models: Any, tmp_path: Path, load_checkpoint: Load, damage: str) -> None:
    models = make_models(num_experts=4, layers=1)
    recipes, store = Recipes(models), tmp_path / "store"
    merge_plan(recipes.plan(0, 1, 2), tmp_path / "three", store)
    targets = sums_of(store)
    contents = [path.read_bytes() for path in targets]
    for index, path in enumerate(targets):
        content = contents[index]
        middle = len(content) * 7 // 8
        path.write_bytes(
            {
                "truncate": content[:middle],
                "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "empty": b"",
                "swap": contents[(index + 1) % len(contents)],
                "foreign": (models.base / "model.safetensors").read_bytes(),
            }[damage]
        )
    plan = recipes.plan(0, 1, 2, 3)
    result = merge_plan(plan, tmp_path / "four", store)
    notes = [warning for warning in result.warnings if "summed again" in warning]
    assert len(notes) == len(targets), result.warnings
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    assert (tmp_path / "four/model.safetensors").read_bytes() == (tmp_path / "scratch/model.safetensors").read_bytes()
    assert "summed again" not in (tmp_path / "four/eigenmerge_manifest.json").read_text()


def test_the_plan_projects_the_size_of_the_sums(make_models: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=3, layers=1)
    for name, recipes in (("dense", Recipes(models)), ("adapters", Recipes(models))):
        if name == "adapters":
            make_adapters(models, 3)
        plan = recipes.plan(0, 1, 2)
        assert recipes.plan(0, 1, 2, keep=False).sums_bytes == 0
        merge_plan(plan, tmp_path / f"{name}-out", tmp_path / name)
        stored = sum(path.stat().st_size for path in sums_of(tmp_path / name))
        headers = 4200 * len(sums_of(tmp_path / name))  # header, norms and ranks of each object
        # the plan accounts for the matrix that the second adapter leaves out
        assert plan.sums_bytes <= stored <= plan.sums_bytes + headers


def test_each_part_of_a_fused_tensor_has_its_own_sums(make_models: Any, tmp_path: Path, load_checkpoint: Load) -> None:
    models = make_models(num_experts=4, layers=1)
    for folder, tensors in zip(
        [models.base, *models.experts], [models.base_tensors, *models.expert_tensors], strict=True
    ):
        fused = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))
        }
        for layer in range(1):
            at = f"model.layers.{layer}.self_attn"
            parts = [tensors[f"{at}.{part}_proj.weight"] for part in "qkv"]
            fused[f"{at}.qkv_proj.weight"] = torch.cat(parts)
        save_file(fused, folder / "model.safetensors", {"format": "pt"})
    recipes = Recipes(models, qkv="split")
    merge_plan(recipes.plan(0, 1, 2), tmp_path / "three", tmp_path / "store")
    plan = recipes.plan(0, 1, 2, 3)
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    for expert in models.experts[:3]:
        fill_with_nan(expert)
    merge_plan(plan, tmp_path / "four", tmp_path / "store")
    assert_equal(load_checkpoint(tmp_path / "four"), load_checkpoint(tmp_path / "scratch"))


def test_on_s3(make_models: Any, tmp_path: Path, s3_root: Any, load_checkpoint: Load) -> None:
    models = make_models(num_experts=3, layers=1)
    recipes = Recipes(models)
    store, options = f"{s3_root.uri}/store", s3_root.storage_options
    merge_plan(recipes.plan(0, 1), tmp_path / "two", store, options)
    plan = recipes.plan(0, 1, 2)
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    for expert in models.experts[:2]:
        fill_with_nan(expert)
    merge_plan(plan, tmp_path / "three", store, options)
    assert_equal(load_checkpoint(tmp_path / "three"), load_checkpoint(tmp_path / "scratch"))


def test_adding_an_expert_to_an_adapter_as_output(make_models: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=3, layers=1)
    make_adapters(models, 3)
    recipes = Recipes(models, output={"format": "adapter"})
    merge_plan(recipes.plan(0, 1), tmp_path / "two", tmp_path / "store")
    plan = recipes.plan(0, 1, 2)
    merge_plan(plan, tmp_path / "scratch", tmp_path / "empty")
    for expert in models.experts[:2]:
        fill_with_nan(expert)
    merge_plan(plan, tmp_path / "three", tmp_path / "store")
    name = "adapter_model.safetensors"
    assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "scratch" / name).read_bytes()
