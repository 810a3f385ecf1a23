"""SWUDI+: filter times aligned over all layers of a model, compared with results of the published code."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.cache.alignments import read_alignment
from eigenmerge.core.cache.spectra.table_file import read_run_table
from eigenmerge.core.errors import StoreError
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.run import Run
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.merge_shard import merge_shard
from eigenmerge.core.storage.store import Store

GOLDEN = Path(__file__).parents[1] / "golden"
GoldenData = runpy.run_path(str(GOLDEN / "conftest.py"))["GoldenData"]


@pytest.fixture(scope="module")
def golden() -> Any:
    return GoldenData(GOLDEN, "outputs.safetensors", None)


@pytest.fixture
def group(golden: Any, tmp_path: Path, save_model: Callable[..., Path]) -> dict[str, Any]:
    """The recipe of the published setting, on the golden group of layers as a model of three layers."""
    facts = golden.manifest["align_group_k4"]
    deltas = {f"layers.{index}.w.weight": golden.experts(layer) for index, layer in enumerate(facts["layers"])}
    base = {name: torch.zeros_like(experts[0]) for name, experts in deltas.items()}
    places = [save_model(tmp_path / "base", base, {"model_type": "test"})]
    for number in range(4):
        tensors = {name: experts[number] for name, experts in deltas.items()}
        places.append(save_model(tmp_path / f"expert{number}", tensors, {"model_type": "test"}))
    return {
        "merge_method": "swudi",
        "base_model": str(places[0]),
        "models": [str(place) for place in places[1:]],
        "dtype": "float64",
        "parameters": {
            "exp_time": facts["exp_time"],
            "alignment_rho": facts["alignment_rho"],
            "gamma": facts["filter_gamma"],
            "rank_ratio": facts["truncate_rank_ratio"],
        },
    }


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_results_equal_those_of_the_published_code(
    golden: Any, group: dict[str, Any], pipeline: Any, tmp_path: Path, load_checkpoint: Any
) -> None:
    store = str(tmp_path / "store")
    result = pipeline(recipe_from_mapping(group), tmp_path / "out", store=store)
    merged = load_checkpoint(tmp_path / "out")
    for index, layer in enumerate(golden.manifest["align_group_k4"]["layers"]):
        assert error(merged[f"layers.{index}.w.weight"], golden.result("align_group_k4", layer)) < 1e-6, layer
    assert (result.decompositions_computed, result.decompositions_reused) == (3, 0), (
        "each layer is decomposed once, although its shard runs twice"
    )


def test_each_layer_has_its_own_filter_time(
    golden: Any, group: dict[str, Any], pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any
) -> None:
    """At a short filter time, because the published one passes every direction of these layers."""
    layers = golden.manifest["align_group_k4"]["layers"]
    experts = [golden.experts(layer) for layer in layers]
    largest = [torch.linalg.eigvalsh(sum(v.T @ v / v.square().sum() for v in vectors))[-1] for vectors in experts]
    mean = torch.stack(largest).log().mean().exp()
    for number, rho in enumerate((0.5, 2.0, 0.0)):
        recipe = group | {"parameters": {"exp_time": 10.0, "alignment_rho": rho}}
        result = pipeline(recipe, tmp_path / f"out{number}")
        # another filter time of the same layers decomposes nothing
        assert result.decompositions_computed == (3 if number == 0 else 0)
        merged = load_checkpoint(tmp_path / f"out{number}")
        for index, vectors in enumerate(experts):
            time = 10.0 * float(mean / largest[index]) ** rho
            expected = merge_task_vectors(vectors, method="swudi", exp_time=time)
            assert error(merged[f"layers.{index}.w.weight"], expected) < 1e-9
            if rho and abs(float(mean / largest[index]) - 1) > 0.05 and "ortho" not in layers[index]:
                plain = merge_task_vectors(vectors, method="swudi", exp_time=10.0)
                assert error(expected, plain) > 1e-3, "the alignment changes the result"


def test_the_table_of_a_run_is_built_again_from_the_spectra(
    group: dict[str, Any], pipeline: Any, tmp_path: Path
) -> None:
    recipe, store = recipe_from_mapping(group), Store(str(tmp_path / "store"))
    pipeline(recipe, tmp_path / "out", store=store.root_uri)
    plan = make_plan(recipe)
    key = f"runs/{plan.run_key}/spectra.arrow"
    rows = list(read_run_table(store, key))
    assert [row.name for row in rows] == [f"layers.{index}.w.weight" for index in range(3)]
    alignment_key = plan.shards[0].tensors[0].alignment_key
    assert alignment_key is not None
    largest = read_alignment(store, alignment_key)
    assert {row.spectrum_key: float(row.spectrum.values[0]) for row in rows} == largest
    assert all(row.spectrum.statistics["target_energy"].numel() for row in rows)
    first = store.read(key)

    # without the tables of the parts, the rows come from the spectra
    store.delete([key, *(info.key for info in store.list("parts/") if info.key.endswith(".arrow"))])
    pipeline(recipe, tmp_path / "again", store=store.root_uri)
    assert store.read(key) == first


@pytest.mark.parametrize("keeps", ["values", "none"])
def test_without_kept_spectra_each_layer_is_decomposed_twice(
    golden: Any, group: dict[str, Any], pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any, keeps: str
) -> None:
    result = pipeline(group | {"spectra": keeps}, tmp_path / "out")
    layer = golden.manifest["align_group_k4"]["layers"][0]
    merged = load_checkpoint(tmp_path / "out")["layers.0.w.weight"]
    assert error(merged, golden.result("align_group_k4", layer)) < 1e-6
    assert result.decompositions_computed == 6


def test_a_damaged_alignment_is_computed_again(
    group: dict[str, Any], pipeline: Any, tmp_path: Path, load_checkpoint: Any
) -> None:
    recipe, store = recipe_from_mapping(group), Store(str(tmp_path / "store"))
    pipeline(recipe, tmp_path / "a", store=store.root_uri)
    (info,) = store.list("alignments/")
    content = json.loads(store.read(info.key))
    content["largest_values"] = {key: value + 1 for key, value in content["largest_values"].items()}
    store.write(info.key, json.dumps(content).encode())
    store.delete([info.key for info in store.list("parts/")])
    pipeline(recipe, tmp_path / "b", store=store.root_uri)
    first, second = (load_checkpoint(tmp_path / name) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_missing_alignment_is_an_error_with_advice(group: dict[str, Any], tmp_path: Path) -> None:
    plan = make_plan(recipe_from_mapping(group))
    with pytest.raises(StoreError, match="run the same command again"):
        merge_shard(Run(plan, Store(str(tmp_path / "store"))).jobs()[0])


def test_the_key_of_a_calibration_depends_on_the_alignment(group: dict[str, Any]) -> None:
    """Another filter time gives another merged delta, hence another calibration, but the same decomposition."""
    keys = []
    for rho in (0.5, 1.0):
        recipe = group | {"parameters": group["parameters"] | {"alignment_rho": rho}, "calibration": {"svc": {}}}
        tensor = make_plan(recipe_from_mapping(recipe)).shards[0].tensors[0]
        keys.append((tensor.spectrum_key, tensor.calibration_key))
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]
    assert all(key is not None for pair in keys for key in pair)
