"""A proposed recipe can be merged, names the base that adapters name, and limits the memory where that is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.coordination.worker_count import available_cores
from eigenmerge.core.errors import CheckpointError, RecipeError
from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.propose_recipe import propose_recipe
from eigenmerge.core.steps.read_recipe import read_recipe

WEIGHT = "model.layers.0.mlp.up_proj.weight"


def save_model(folder: Path, seed: int, shape: tuple[int, int] = (24, 16), **config: object) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name in (WEIGHT, WEIGHT.replace(".0.", ".1."))}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def save_adapter(folder: Path, seed: int, base: str) -> str:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    generator = torch.Generator().manual_seed(seed)
    name = f"base_model.model.{WEIGHT.removesuffix('.weight')}.lora_"
    factors = {f"{name}A.weight": torch.randn(2, 16, generator=generator)}
    factors[f"{name}B.weight"] = torch.randn(24, 2, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors")
    return str(folder)


def test_a_proposal_is_merged_as_it_is(tmp_path: Path) -> None:
    models = [save_model(tmp_path / f"expert {number}", number) for number in range(3)]
    base = save_model(tmp_path / "base", 9)
    proposal = propose_recipe([*models, base, models[0]], base=base)
    assert [expert.name for expert in proposal.plan.experts] == models
    assert proposal.base_origin == ""
    assert read_recipe(proposal.text).canonical() == proposal.plan.recipe
    assert merge_run(read_recipe(proposal.text), str(tmp_path / "out"), store=str(tmp_path / "store"))
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_base_of_adapters_is_what_they_name(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", 9)
    adapters = [save_adapter(tmp_path / name, seed, base) for seed, name in enumerate(("a", "b"))]
    proposal = propose_recipe(adapters, method="ties")
    assert proposal.base_origin == "adapter_config.json"
    assert f"base_model: {base}  # named by adapter_config.json" in proposal.text
    assert "# output: adapter" in proposal.text
    other = save_adapter(tmp_path / "c", 3, "acme/other")
    with pytest.raises(RecipeError, match="base model is missing; give it with --base"):
        propose_recipe([*adapters, other])


def test_a_base_that_full_models_name_is_told_and_not_taken(tmp_path: Path) -> None:
    models = [save_model(tmp_path / name, seed, _name_or_path="acme/llama") for seed, name in enumerate("ab")]
    with pytest.raises(RecipeError, match=r"config\.json of all models names acme/llama; give it with --base"):
        propose_recipe(models)


def test_memory_is_limited_only_where_it_is_short(tmp_path: Path) -> None:
    models = [save_model(tmp_path / name, seed) for seed, name in enumerate("ab")]
    base = save_model(tmp_path / "base", 9)
    proposal = propose_recipe(models, base=base, memory=2**40)
    assert read_recipe(proposal.text).max_memory is None
    if available_cores() < 2:
        pytest.skip("one core computes one shard at a time, so memory for one is enough")
    for enough_for, limited in ((1.5, True), (0.5, False)):  # shards of the largest size; less than one cannot run
        memory = int(enough_for * proposal.plan.peak_bytes / 0.8)
        found = read_recipe(propose_recipe(models, base=base, memory=memory).text).max_memory
        assert (found is not None) == limited


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    model, base = save_model(tmp_path / "a", 1), save_model(tmp_path / "base", 2)
    with pytest.raises(RecipeError, match="at least two models beside the base; found"):
        propose_recipe([model, base], base=base)
    with pytest.raises(RecipeError, match="unknown merge method"):
        propose_recipe([model, model + "x"], base=base, method="swudy")
    odd = save_model(tmp_path / "odd", 3, (16, 16))
    with pytest.raises(CheckpointError, match=r"up_proj"):
        propose_recipe([model, odd], base=base)


def test_names_that_yaml_would_read_as_other_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["null", "1e5", "true", "a: b", "#x", "é ñ", "007"]
    for seed, name in enumerate([*names, "no"]):
        save_model(tmp_path / name, seed)
    recipe = read_recipe(propose_recipe(names, base="no").text)
    assert (recipe.base_model, recipe.expert_references) == ("no", names)
