"""Every method through the pipeline on small models, compared with merge_task_vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.numerics.method import DirectMethod, SpectralMethod
from eigenmerge.core.numerics.registry import built_in_methods

Pipeline = Callable[..., Any]
SPECTRAL = sorted(name for name, method in built_in_methods().items() if isinstance(method, SpectralMethod))
DIRECT = sorted(name for name, method in built_in_methods().items() if isinstance(method, DirectMethod))
Q_PROJ, NORM = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.input_layernorm.weight"

# Required parameters, and parameters whose defaults do not suit these models.
PARAMETERS: dict[str, dict[str, Any]] = {
    "wudi": {"iterations": 20},
    "optmerge": {"iterations": 20},
    "slerp": {"t": 0.4},
    "nearswap": {"t": 0.01},
    "sce": {"select_topk": 0.5},
}
NUM_EXPERTS = {"nuslerp": 2, "slerp": 1, "nearswap": 1, "arcee_fusion": 1, "passthrough": 1}


def deltas(models: Any, name: str, count: int) -> list[torch.Tensor]:
    return [expert[name] - models.base_tensors[name] for expert in models.expert_tensors[:count]]


def recipe_of(models: Any, method: str, **keys: Any) -> dict[str, Any]:
    """Return a recipe with the number of experts and the parameters that the method needs."""
    recipe = models.recipe(method, parameters=PARAMETERS.get(method, {}), **keys)
    recipe["models"] = recipe["models"][: NUM_EXPERTS.get(method, 3)]
    if not PARAMETERS.get(method):
        del recipe["parameters"]
    if method == "passthrough":
        del recipe["base_model"]
    return recipe


def merge(models: Any, pipeline: Pipeline, tmp_path: Path, method: str, **keys: Any) -> Any:
    return pipeline(recipe_of(models, method, **keys), tmp_path / "out")


@pytest.mark.parametrize("method", SPECTRAL)
def test_spectral_methods_equal_the_tensor_level_call(
    make_models: Callable[..., Any], pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any, method: str
) -> None:
    models = make_models(layers=2)
    merge(models, pipeline, tmp_path, method)
    merged = load_checkpoint(tmp_path / "out")
    base = models.base_tensors
    assert set(merged) == set(base)
    given = PARAMETERS.get(method, {})
    expected = merge_task_vectors(deltas(models, Q_PROJ, 3), method=method, **given)
    assert expected.abs().max() > 0
    change = (merged[Q_PROJ] - base[Q_PROJ]).double()
    assert (change - expected).norm() < 1e-4 * expected.norm()
    mean = torch.stack(deltas(models, NORM, 3)).mean(0)
    torch.testing.assert_close(merged[NORM], base[NORM] + mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", DIRECT)
def test_direct_methods_equal_the_tensor_level_call(
    make_models: Callable[..., Any], pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any, method: str
) -> None:
    models = make_models(layers=2)
    count = NUM_EXPERTS.get(method, 3)
    merge(models, pipeline, tmp_path, method)
    merged = load_checkpoint(tmp_path / "out")
    base = models.base_tensors
    assert set(merged) == set(base)
    assert all(tensor.isfinite().all() for tensor in merged.values())
    for name in (Q_PROJ, NORM):
        assert not torch.equal(merged[name], base[name]), name
    chosen = built_in_methods()[method]
    if "seed" in type(chosen).__module__ or method.startswith(("dare", "della")):
        return  # random numbers depend on the tensor's name, which the tensor-level call does not have
    given = PARAMETERS.get(method, {})
    vectors = deltas(models, Q_PROJ, count)
    if method == "karcher":
        vectors.append(torch.zeros_like(base[Q_PROJ]))  # it averages the base too, as mergekit does
    expected = merge_task_vectors(vectors, method=method, base=base[Q_PROJ], **given)
    torch.testing.assert_close(merged[Q_PROJ], base[Q_PROJ] + expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["iso_c", "tsv_m", "swudi_a", "star"])
def test_svc_after_a_method_equals_the_tensor_level_call(
    make_models: Callable[..., Any], pipeline: Pipeline, tmp_path: Path, load_checkpoint: Any, method: str
) -> None:
    """Also after iso_c, where equal singular values leave the directions undetermined."""
    models = make_models(layers=1)
    name = Q_PROJ.replace("layers.1", "layers.0")
    result = merge(models, pipeline, tmp_path, method, calibration={"svc": {"alpha": 0.5}})
    merged = load_checkpoint(tmp_path / "out")[name]
    calibration = {"svc": {"alpha": 0.5}}
    expected = merge_task_vectors(deltas(models, name, 3), method=method, calibration=calibration)
    change = (merged - models.base_tensors[name]).double()
    assert (change - expected).norm() < 1e-4 * expected.norm()
    warned = [warning for warning in result.warnings if "ill-posed" in warning]
    assert len(warned) == (1 if method == "iso_c" else 0), "the plan warns once, not for every tensor"


def test_a_flat_spectrum_is_reported_for_the_tensor(
    make_models: Callable[..., Any], save_model: Any, pipeline: Pipeline, tmp_path: Path
) -> None:
    """Two experts with orthogonal directions of equal size: the merged singular values are equal."""
    models = make_models(num_experts=2, layers=1)
    name = Q_PROJ.replace("layers.1", "layers.0")
    for index, folder in enumerate(models.experts):
        tensors = dict(models.base_tensors)
        tensors[name] = tensors[name] + 0.01 * torch.diag(torch.tensor([1.0 - index, index] * 16))
        save_model(folder, tensors, json.loads((models.base / "config.json").read_text()))
    recipe = models.recipe("swudi_a", calibration={"svc": {}})
    result = pipeline(recipe, tmp_path / "out")
    assert any(
        name in warning and "singular values of the merged delta are equal" in warning for warning in result.warnings
    )


def test_every_method_is_covered() -> None:
    assert len(SPECTRAL) + len(DIRECT) == len(built_in_methods())
    assert {"swudi", "optmerge", "iso_cts", "ace"} <= set(SPECTRAL)
    assert {"ties", "della", "model_stock"} <= set(DIRECT)
