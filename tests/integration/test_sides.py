"""`side` in a recipe: outputs, both and smaller, with all that holds for inputs: store, sums, SVC, alignment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.cache.result import EXACT_BELOW, MergeResult
from eigenmerge.core.cache.spectra.table_file import read_run_table
from eigenmerge.core.errors import RecipeError
from eigenmerge.core.output.read_manifest import read_manifest
from eigenmerge.core.planning.plan import spectrum_keys
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.steps import merge_run as merging
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.reading.rank_rows import rank_rows
from eigenmerge.core.steps.reading.run_records import read_run_records
from eigenmerge.core.storage.store import Store

from ..small_models import (
    Models,
    base_weights,
    expert_weights,
    llama_config,
    llama_shapes,
    load_checkpoint,
    save_model,
)

Q, K, DOWN = (f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
NUM_MATRICES = 7
SIDES = ("inputs", "outputs", "both", "smaller")


def recipe_of(models: Any, side: str | None = None, method: str = "swudi_a", **keys: Any) -> dict[str, Any]:
    parameters = {**keys.pop("parameters", {}), **({"side": side} if side else {})}
    return models.recipe(method, parameters=parameters, **keys)


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def bytes_of(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def manifest_rows(out: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((out / "eigenmerge_manifest.json").read_text())["tensors"]
    return {row["name"]: row for row in rows}


def spectra_in(store: Path) -> set[str]:
    return {path.name for path in store.glob("spectra/**/*.arrow")}


def merge(recipe: dict[str, Any], out: Path, store: Path) -> MergeResult:
    return merging.merge_run(recipe_from_mapping(recipe), str(out), store=str(store))


def deltas(models: Models, name: str) -> list[torch.Tensor]:
    return [expert[name] - models.base_tensors[name] for expert in models.expert_tensors]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    base = base_weights(layers=1)
    experts = [expert_weights(base, index) for index in range(3)]
    config = llama_config(layers=1)
    places = [save_model(root / f"expert{index}", tensors, config) for index, tensors in enumerate(experts)]
    return Models(root, save_model(root / "base", base, config), places, base, experts)


@dataclass(frozen=True)
class Merges:
    """The same experts merged over every side: inputs and outputs first, the others from their spectra."""

    results: dict[str, MergeResult]
    folder: Path
    store: Path


@pytest.fixture(scope="module")
def merges(small: Models, tmp_path_factory: pytest.TempPathFactory) -> Merges:
    folder = tmp_path_factory.mktemp("merges")
    store = folder / "store"
    results = {side: merge(recipe_of(small, side), folder / side, store) for side in SIDES}
    return Merges(results, folder, store)


def test_every_side_equals_the_tensor_level_call(small: Models, merges: Merges) -> None:
    for side in SIDES[1:]:
        merged = load_checkpoint(merges.folder / side)
        for name in (Q, K, DOWN):
            expected = merge_task_vectors(deltas(small, name), "swudi_a", side=side)
            assert_close(merged[name] - small.base_tensors[name], expected, 1e-4)


def test_spectra_are_shared_between_sides(small: Models, merges: Merges, tmp_path: Path) -> None:
    """A run over both sides uses the spectra of runs over each, and the reverse, with equal bytes."""
    found = {side: (one.decompositions_computed, one.decompositions_reused) for side, one in merges.results.items()}
    computed, reused = (NUM_MATRICES, 0), (0, NUM_MATRICES)
    assert found == {"inputs": computed, "outputs": computed, "both": reused, "smaller": reused}
    both = merge(recipe_of(small, "both"), tmp_path / "both", tmp_path / "store")
    assert both.decompositions_computed == NUM_MATRICES
    assert spectra_in(tmp_path / "store") == spectra_in(merges.store) and len(spectra_in(merges.store)) == 14
    outputs = merge(recipe_of(small, "outputs"), tmp_path / "outputs", tmp_path / "store")
    assert outputs.decompositions_computed == 0
    for side in ("outputs", "both"):
        assert bytes_of(tmp_path / side) == bytes_of(merges.folder / side), side


def test_a_run_resumes_with_equal_bytes(small: Models, merges: Merges, tmp_path: Path) -> None:
    """From the spectra that a killed run left: those of some matrices, of some only over inputs."""
    plan = make_plan(recipe_from_mapping(recipe_of(small, "both")))
    keys = [key for shard in plan.shards for tensor in shard.tensors for key in spectrum_keys(tensor)]
    full, part = Store(str(merges.store)), Store(str(tmp_path / "store"))
    for key in keys[:5]:
        part.write(key, full.read(key))
    merge(recipe_of(small, "both"), tmp_path / "out", tmp_path / "store")
    assert bytes_of(tmp_path / "out") == bytes_of(merges.folder / "both")


def test_the_default_has_the_keys_of_inputs(small: Models) -> None:
    plain, named = (make_plan(recipe_from_mapping(recipe_of(small, side))) for side in (None, "inputs"))
    assert [shard.part_key for shard in plain.shards] == [shard.part_key for shard in named.shards]


def test_smaller_is_the_named_side_bit_for_bit(small: Models, merges: Merges, tmp_path: Path) -> None:
    # k and v (16 x 32) and down_proj (32 x 64) have fewer outputs than inputs
    wide = ("k_proj", "v_proj", "down_proj")
    rules = [{"match": f"*.{name}.weight", "parameters": {"side": "outputs"}} for name in wide]
    merge(recipe_of(small, rules=rules), tmp_path / "named", tmp_path / "store")
    assert bytes_of(merges.folder / "smaller") == bytes_of(tmp_path / "named")
    assert bytes_of(merges.folder / "smaller") != bytes_of(merges.folder / "inputs")
    assert spectra_in(tmp_path / "store") < spectra_in(merges.store)


def test_what_is_reported(small: Models, merges: Merges) -> None:
    plain, outputs, both = (manifest_rows(merges.folder / side)[DOWN] for side in ("inputs", "outputs", "both"))
    assert "outputs_rank" not in plain and "decomposed_over" not in plain and "side" not in plain["parameters"]
    assert outputs["decomposed_over"] == ["outputs"] and both["decomposed_over"] == ["inputs", "outputs"]
    assert (both["rank"], both["energy"], both["spectrum"]) == (plain["rank"], plain["energy"], plain["spectrum"])
    assert (both["outputs_rank"], both["outputs_energy"]) == (outputs["rank"], outputs["energy"])
    assert both["outputs_spectrum"] == outputs["spectrum"] != both["spectrum"]
    assert both["rank"] != both["outputs_rank"] <= 32
    assert both["reason"] == "2-D weight; over both sides" and outputs["reason"] == "2-D weight; over outputs"
    card = (merges.folder / "both" / "README.md").read_text()
    assert "Directions kept per layer over outputs, of layers that are decomposed over both sides: " in card
    run = make_plan(recipe_from_mapping(recipe_of(small, "both"))).run_key
    rows = read_run_table(Store(str(merges.store)), f"runs/{run}/spectra.arrow")
    shapes = {row.name: row.spectrum.shape for row in rows}
    assert shapes[DOWN] == (32, 64) and shapes[f"{DOWN}[outputs]"] == (64, 32)


@pytest.mark.parametrize("has_store", [True, False])
def test_ranks_of_a_finished_merge(has_store: bool, merges: Merges, tmp_path: Path) -> None:
    """With the store from its spectra, without it from the manifest alone."""
    for side, names in (("outputs", [f"{DOWN}[outputs]"]), ("both", [DOWN, f"{DOWN}[outputs]"])):
        manifest = read_manifest(Store(str(merges.folder / side)))
        store = merges.store if has_store else tmp_path
        rows = rank_rows(manifest, read_run_records(Store(str(store)), manifest.run_key))
        found = {row.name: row for row in rows if row.name.startswith(DOWN)}
        expected = manifest_rows(merges.folder / side)[DOWN]
        assert list(found) == names and (found[DOWN].directions if side == "both" else 64) == 64
        assert found[names[-1]].directions == 32
        assert found[names[-1]].rank == expected["outputs_rank" if side == "both" else "rank"]
        assert found[names[0]].rank == expected["rank"]
        assert found[names[0]].energy == pytest.approx(expected["energy"])
        assert (found[names[-1]].last_kept is not None) == has_store


@pytest.mark.parametrize("side", ["both", pytest.param("outputs", marks=pytest.mark.slow)])
def test_svc_is_that_of_the_merged_delta(side: str, small: Models, tmp_path: Path) -> None:
    calibration, store = {"svc": {"alpha": 0.5}}, tmp_path / "store"
    first = merge(recipe_of(small, side, calibration=calibration), tmp_path / "a", store)
    merged = load_checkpoint(tmp_path / "a")
    for name in (Q, DOWN):
        expected = merge_task_vectors(deltas(small, name), "swudi_a", side=side, calibration=calibration)
        assert_close(merged[name] - small.base_tensors[name], expected, 1e-3)
    again = merge(recipe_of(small, side, calibration={"svc": {"alpha": 0.9}}), tmp_path / "b", store)
    assert first.decompositions_computed == NUM_MATRICES and again.decompositions_computed == 0
    found, other = (manifest_rows(tmp_path / name)[DOWN] for name in "ab")
    assert (found["rank"], found.get("outputs_rank")) == (other["rank"], other.get("outputs_rank"))


def test_alignment_is_within_each_side(small: Models, tmp_path: Path) -> None:
    """So the result over both sides is the mean of those over each."""
    parameters = {"exp_time": 10.0, "alignment_rho": 1.0}
    merged = {}
    for side in SIDES:
        result = merge(recipe_of(small, side, "swudi", parameters=parameters), tmp_path / side, tmp_path / "store")
        assert result.decompositions_computed == (0 if side in ("both", "smaller") else NUM_MATRICES)
        merged[side] = load_checkpoint(tmp_path / side)
    for name in (Q, K, DOWN):
        assert_close(merged["both"][name], (merged["inputs"][name] + merged["outputs"][name]) / 2)
        plain = merge_task_vectors(deltas(small, name), "swudi", side="outputs", exp_time=10.0)
        assert (merged["outputs"][name] - small.base_tensors[name] - plain).norm() > 1e-4 * plain.norm()


def test_sums_over_outputs_are_kept(small: Models, tmp_path: Path) -> None:
    recipe, store = recipe_of(small, "both", keep_sums=True), tmp_path / "store"
    first = merge({**recipe, "models": recipe["models"][:2]}, tmp_path / "two", store)
    later = merge(recipe, tmp_path / "three", store)
    assert later.kept_bytes_read > 0 and later.bytes_read < first.bytes_read
    merge(recipe, tmp_path / "scratch", tmp_path / "empty")
    found, expected = load_checkpoint(tmp_path / "three"), load_checkpoint(tmp_path / "scratch")
    assert all((found[name] - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max() for name in expected)
    # the sums of a run over inputs are those of the run over both
    inputs = merge(recipe_of(small, "inputs", keep_sums=True), tmp_path / "inputs", store)
    assert inputs.decompositions_computed == 0


def test_slices_and_rules_choose_a_side(small: Models, tmp_path: Path) -> None:
    sources = [{"model": str(path), "layer_range": [0, 1]} for path in small.experts]
    sliced = recipe_of(small, "outputs")
    del sliced["models"]
    sliced["slices"] = [{"sources": sources, "parameters": {"side": "both"}}]
    sliced["rules"] = [{"match": "*.q_proj.weight", "parameters": {"side": "inputs"}}]
    merge(sliced, tmp_path / "out", tmp_path / "store")
    merged = load_checkpoint(tmp_path / "out")
    for name, side in ((Q, "inputs"), (DOWN, "both")):
        expected = merge_task_vectors(deltas(small, name), "swudi_a", side=side)
        assert_close(merged[name] - small.base_tensors[name], expected, 1e-4)


def test_a_share_without_both_sides_is_refused_with_its_place(small: Models) -> None:
    rule: dict[str, Any] = {"match": "*.q_proj.weight", "parameters": {"side": "inputs"}}
    recipe = recipe_of(small, "both", parameters={"outputs_share": 0.3}, rules=[rule])
    with pytest.raises(RecipeError, match=r"outputs_share is 0\.3 and side is inputs; outputs_share is for side: both"):
        make_plan(recipe_from_mapping(recipe))
    rule["parameters"]["outputs_share"] = None
    make_plan(recipe_from_mapping(recipe))


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", ["both", "smaller"])
def test_every_kind_of_matrix(side: str, tmp_path: Path) -> None:
    """A convolution, a stack, a matrix stored (in, out) that is split, one that a rule transposes, an embedding."""
    conv, stack, fused, ruled, embedding = (
        "encoder.conv1.weight",
        "h.0.mlp.experts.down_proj",
        "h.0.attn.c_attn.weight",
        "h.0.w_in.weight",
        "wte.weight",
    )
    shapes = {conv: (8, 3, 2, 2), stack: (3, 5, 9), fused: (8, 24), ruled: (6, 14), embedding: (10, 8)}
    base = {name: random(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}
    experts = [{n: v + 0.1 * random(seed + i, *v.shape) for i, (n, v) in enumerate(base.items())} for seed in (10, 20)]
    places = [save_model(tmp_path / f"m{i}", one, {"model_type": "test"}) for i, one in enumerate((base, *experts))]
    recipe = {
        "merge_method": "swudi_a",
        "base_model": str(places[0]),
        "models": [str(place) for place in places[1:]],
        "parameters": {"side": side},
        "rules": [{"match": ruled, "orientation": "in_out"}],
        "conv": "matrix",
        "qkv": "split",
        "embeddings": "merge",
    }
    merge(recipe, tmp_path / "out", tmp_path / "store")
    merged = load_checkpoint(tmp_path / "out")

    def check(found: torch.Tensor, start: torch.Tensor, moved: list[torch.Tensor]) -> None:
        expected = merge_task_vectors([one - start for one in moved], "swudi_a", side=side)
        assert_close(found - start, expected, 1e-4)

    check(merged[conv].reshape(8, 12), base[conv].reshape(8, 12), [one[conv].reshape(8, 12) for one in experts])
    check(merged[embedding], base[embedding], [one[embedding] for one in experts])
    check(merged[ruled].T, base[ruled].T, [one[ruled].T for one in experts])
    for index in range(3):
        check(merged[stack][index], base[stack][index], [one[stack][index] for one in experts])
    for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
        check(merged[fused].T[part], base[fused].T[part], [one[fused].T[part] for one in experts])
    rows = manifest_rows(tmp_path / "out")
    assert (rows[fused]["orientation"], rows[ruled]["orientation"], rows[stack]["num_matrices"]) == (
        "in_out",
        "in_out",
        3,
    )
    # (out, in) of the one that the rule calls (in, out) is (14, 6): smaller is inputs
    assert rows[ruled].get("decomposed_over") == (["inputs", "outputs"] if side == "both" else None)
    assert rows[stack].get("decomposed_over") == (["inputs", "outputs"] if side == "both" else ["outputs"])


@pytest.fixture(scope="module")
def adapters(small: Models) -> list[Path]:
    """Four LoRA adapters of rank 3 on all projections of the base, and the second leaves out one."""
    folders: list[Path] = []
    for number in range(4):
        folders.append(small.root / f"adapter{number}")
        folders[-1].mkdir()
        factors = {}
        for position, (name, weight) in enumerate(small.base_tensors.items()):
            if "_proj" in name and not (number == 1 and name == Q):
                stem, seed = f"base_model.model.{name.removesuffix('.weight')}", 100 * number + position
                factors[f"{stem}.lora_A.weight"] = 0.1 * random(seed, 3, weight.shape[1])
                factors[f"{stem}.lora_B.weight"] = 0.1 * random(seed + 50, weight.shape[0], 3)
        save_file(factors, folders[-1] / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": "base"}
        (folders[-1] / "adapter_config.json").write_text(json.dumps(config))
    return folders


def delta_of(adapter: Path, name: str, scaling: float) -> torch.Tensor:
    factors, stem = load_file(adapter / "adapter_model.safetensors"), f"base_model.model.{name.removesuffix('.weight')}"
    if f"{stem}.lora_A.weight" not in factors:
        return torch.zeros(llama_shapes(layers=1)[name])
    return scaling * factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]


@pytest.mark.parametrize("side", ["both", pytest.param("outputs", marks=pytest.mark.slow)])
def test_adapters_as_input_and_as_output(side: str, small: Models, adapters: list[Path], tmp_path: Path) -> None:
    recipe = recipe_of(small, side) | {"models": [str(one) for one in adapters[:3]]}
    merge(recipe, tmp_path / "full", tmp_path / "store")
    written = merge(recipe | {"output": {"format": "adapter"}}, tmp_path / "adapter", tmp_path / "store")
    assert written.decompositions_computed == 0  # the factors are the same for both outputs
    merged, rows = load_checkpoint(tmp_path / "full"), manifest_rows(tmp_path / "adapter")
    for name in (Q, K, DOWN):
        expected = merge_task_vectors([delta_of(one, name, 2.0) for one in adapters[:3]], "swudi_a", side=side)
        assert_close(merged[name] - small.base_tensors[name], expected, 1e-4)
        assert_close(delta_of(tmp_path / "adapter", name, 1.0), expected, 1e-4)
        # the sum of the experts' ranks holds both sides
        assert rows[name]["stored_rank"] == (6 if name == Q else 9) and rows[name]["truncation_error"] < EXACT_BELOW


@pytest.mark.slow
def test_adding_an_adapter_gives_the_same_bytes(small: Models, adapters: list[Path], tmp_path: Path) -> None:
    """Factors of the transposed adapters are kept, also for the second pass of SVC."""
    recipe = recipe_of(small, "both", keep_sums=True, calibration={"svc": {}})
    three = recipe | {"models": [str(one) for one in adapters[:3]]}
    four = recipe | {"models": [str(one) for one in adapters]}
    merge(three, tmp_path / "three", tmp_path / "store")
    later = merge(four, tmp_path / "four", tmp_path / "store")
    assert later.kept_bytes_read > 0
    merge(four, tmp_path / "scratch", tmp_path / "empty")
    assert bytes_of(tmp_path / "four") == bytes_of(tmp_path / "scratch")
