"""`spectra: top`: bytes do not depend on what the store holds; a filter that needs more decomposes again and says so.

The constants are lowered, so that the layers of a small model are kept in part: 6 directions of 32 or 64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core.cache.runs import read_run_objects
from eigenmerge.core.cache.spectra.reader import read_spectrum
from eigenmerge.core.numerics.interference import top_directions
from eigenmerge.core.planning.keys import top_values_key
from eigenmerge.core.planning.plan import Plan
from eigenmerge.core.steps.collect_garbage import collect_garbage
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.storage.store import Store

KEPT = 6
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
WITHIN: dict[str, Any] = {"parameters": {"max_rank_ratio": 0.1}}  # 3 of 32, 6 of 64
FLOAT32: dict[str, Any] = {"out_dtype": "float32"}


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_directions, "LEAST_DIRECTIONS", KEPT)


def plan_of(recipe: Any) -> Plan:
    return make_plan(read_recipe(recipe))


def delete_parts(store: Path) -> None:
    for path in store.glob("parts/**/*.*"):
        path.unlink()


def relative(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor) -> float:
    return float((found - expected).norm() / (expected - base).norm())


@pytest.mark.parametrize(
    "extra",
    [
        WITHIN,
        {"parameters": {}},  # more than is kept
        {**WITHIN, "calibration": {"svc": {"alpha": 0.4}}},
        {**WITHIN, "keep_sums": True},
        {**WITHIN, "arithmetic": "float64", "spectra_dtype": "float32"},
        {"parameters": {"max_rank_ratio": 0.09, "side": "both"}},
    ],
    ids=["within", "beyond", "svc", "keep_sums", "rounded vectors", "both sides"],
)
def test_the_store_does_not_decide_the_bytes(
    make_models: Any, pipeline: Any, load_checkpoint: Any, tmp_path: Path, extra: dict[str, Any]
) -> None:
    models = make_models(num_experts=2, layers=1)
    found: dict[str, bytes] = {}

    def merge(kept: str, name: str, store: Path) -> Any:
        result = pipeline(models.recipe("swudi_a", spectra=kept, **FLOAT32, **extra), tmp_path / name, store=store)
        found[name] = (tmp_path / name / "model.safetensors").read_bytes()
        delete_parts(store)
        return result

    first = merge("top", "top", tmp_path / "a")
    again = merge("top", "top, again", tmp_path / "a")
    merge("full", "full after top", tmp_path / "a")
    merge("full", "full", tmp_path / "b")
    after = merge("top", "top after full", tmp_path / "b")
    tops = {name: value for name, value in found.items() if name.startswith("top")}
    others = {name: value for name, value in found.items() if name not in tops}
    assert len(set(tops.values())) == len(set(others.values())) == 1, list(found)
    assert first.decompositions_computed in (7, 14)
    if "max_rank_ratio" in extra["parameters"]:
        assert again.decompositions_computed == after.decompositions_computed == 0
        assert first.warnings == again.warnings == ()
    else:
        assert tops.popitem()[1] == others.popitem()[1]
        assert again.decompositions_computed == 7
        assert after.decompositions_computed == 0 and after.warnings == ()  # the store has the whole spectra
        line = next(line for line in again.warnings if "keeps 6 of 32 directions" in line)
        assert "directions of model.layers.0" in line and "decomposed again" in line, again.warnings
        assert all("a later run decomposes again" in line for line in first.warnings)
    merged, plain = load_checkpoint(tmp_path / "top"), load_checkpoint(tmp_path / "full")
    for name, tensor in merged.items():
        if tensor.ndim == 2 and not torch.equal(tensor, models.base_tensors[name]):
            assert relative(tensor, plain[name], models.base_tensors[name]) < 2e-5, name


def test_another_filter_reads_the_experts_and_decomposes_nothing(
    make_models: Any, pipeline: Any, load_checkpoint: Any, tmp_path: Path
) -> None:
    models = make_models(num_experts=2, layers=1)
    pipeline(models.recipe("swudi_a", spectra="top", **FLOAT32, **WITHIN), tmp_path / "first")
    parameters = {"rank_ratio": 0.09, "exp_time": 30.0, "scale": 0.5}
    recipe = models.recipe("swudi", spectra="top", **FLOAT32, parameters=parameters)
    result = pipeline(recipe, tmp_path / "second")
    assert (result.decompositions_computed, result.decompositions_reused, result.warnings) == (0, 7, ())
    pipeline({**recipe, "spectra": "none"}, tmp_path / "expected", store=tmp_path / "other")
    found, expected = load_checkpoint(tmp_path / "second"), load_checkpoint(tmp_path / "expected")
    for name in (Q, UP):
        assert relative(found[name], expected[name], models.base_tensors[name]) < 1e-5
    # without an anchor no expert is read
    zero = models.recipe(
        "swudi",
        spectra="top",
        parameters={**parameters, "anchor": "zero"},
        vectors="base",
        embeddings="base",
        lm_head="base",
    )
    assert pipeline(zero, tmp_path / "zero").bytes_read < result.bytes_read / 2


def test_what_the_store_has(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=2, layers=1)
    recipe = models.recipe("swudi_a", spectra="top", **WITHIN)
    pipeline(recipe, tmp_path / "out")
    plan, store = plan_of(recipe), Store(str(tmp_path / "store"))
    tensors = {tensor.name: tensor for shard in plan.shards for tensor in shard.tensors}
    for name, columns in ((Q, 32), (UP, 32)):
        key = tensors[name].spectrum_key
        assert key is not None and tensors[name].whole_key not in (None, key)
        assert read_spectrum(store, key).spectrum.right.shape == (KEPT, columns)
        values = read_spectrum(store, top_values_key(key))
        assert values.spectrum.num_directions == columns and not values.has_vectors
        assert {key, top_values_key(key)} <= read_run_objects(store, plan.run_key)
        assert not store.exists(str(tensors[name].whole_key))
    table = read_spectra_rows(tmp_path / "store", plan)
    assert table[Q] == 32
    collect_garbage(store)
    assert all(store.exists(key) for key in read_run_objects(store, plan.run_key) if key.startswith("spectra/"))


def read_spectra_rows(folder: Path, plan: Plan) -> dict[str, int]:
    from eigenmerge.core.cache.run_folder import TABLE_NAME, run_object_key
    from eigenmerge.core.cache.spectra.table_file import read_run_table

    rows = read_run_table(Store(str(folder)), run_object_key(plan.run_key, TABLE_NAME))
    return {row.name: row.spectrum.num_directions for row in rows}


def test_the_projection_is_what_is_kept(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=2, layers=1)
    recipe = models.recipe("swudi_a", spectra="top", **WITHIN)
    pipeline(recipe, tmp_path / "out")
    stored = sum(path.stat().st_size for path in (tmp_path / "store" / "spectra").glob("**/*.arrow"))
    projected = plan_of(recipe).spectrum_bytes
    heads = 14 * 4096  # descriptions and padding of 14 small files
    assert projected <= stored <= projected + heads
    assert projected < 0.5 * plan_of({**recipe, "spectra": "full"}).spectrum_bytes


@pytest.mark.parametrize("method", ["iso_c", "tsv_m", "optmerge"])
def test_decompositions_of_which_all_is_used_are_kept_whole(make_models: Any, method: str) -> None:
    models = make_models(num_experts=2, layers=1)
    top, full = (plan_of(models.recipe(method, spectra=kept)) for kept in ("top", "full"))
    assert top.run_key == full.run_key and top.spectrum_bytes == full.spectrum_bytes


def test_small_matrices_share_their_spectra_with_other_runs(make_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_directions, "LEAST_DIRECTIONS", 64)
    models = make_models(num_experts=2, layers=1)
    assert plan_of(models.recipe(spectra="top")).run_key == plan_of(models.recipe(spectra="full")).run_key


def test_alignment(make_models: Any, pipeline: Any, load_checkpoint: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=2, layers=2)
    keys: dict[str, Any] = {
        **FLOAT32,
        "parameters": {"alignment_rho": 0.5, "rank_ratio": 0.09, "exp_time": 40.0},
    }
    pipeline(models.recipe(spectra="top", **keys), tmp_path / "top")
    pipeline(models.recipe(spectra="full", **keys), tmp_path / "full", store=tmp_path / "other")
    top, full = load_checkpoint(tmp_path / "top"), load_checkpoint(tmp_path / "full")
    for name in (Q, UP):
        assert relative(top[name], full[name], models.base_tensors[name]) < 1e-5


def test_fused_weights_are_kept_matrix_by_matrix(
    make_models: Any, save_model: Any, pipeline: Any, tmp_path: Path
) -> None:
    name = "h.0.attn.c_attn.weight"
    generator = torch.Generator().manual_seed(3)

    def folder(label: str, weight: torch.Tensor) -> str:
        return str(save_model(tmp_path / label, {name: weight}, {"model_type": "qwen"}))

    base = torch.randn(96, 32, generator=generator)
    places = [folder(f"e{i}", base + 0.1 * torch.randn(96, 32, generator=generator)) for i in range(2)]
    recipe = {
        "merge_method": "swudi_a",
        "base_model": folder("b", base),
        "models": [{"model": place} for place in places],
        "spectra": "top",
        **WITHIN,
        "rules": [{"match": name, "action": "merge"}],
    }
    for kept in ("top", "full"):
        pipeline({**recipe, "spectra": kept}, tmp_path / kept)
    plan = plan_of(recipe)
    (tensor,) = (tensor for shard in plan.shards for tensor in shard.tensors)
    assert tensor.whole_key is not None or all(view.whole_key is not None for view in tensor.views)


def test_a_rank_ratio_beyond_the_limit_is_known_from_the_plan(make_models: Any) -> None:
    models = make_models(num_experts=2, layers=1)

    def warnings(ratio: Any) -> list[str]:
        plan = plan_of(models.recipe(spectra="top", parameters={"rank_ratio": ratio}))
        return [line for line in plan.warnings if line.startswith("spectra: top")]

    assert warnings(0.05) == []
    assert warnings(0.85) == [
        "spectra: top keeps at most 6 of 64 directions of model.layers.0.mlp.down_proj.weight, and rank_ratio 0.85"
        " uses 55: every run decomposes it and 6 other tensors again; spectra: full keeps them"
    ]
