"""Merges on a GPU: the same numbers as on the CPU, the same bytes in every run, within the projected memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge import plan
from eigenmerge.core import merge_task_vectors
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method

from ..core.numerics.conditioning import merge_tolerance, random_experts, random_factors, rounding_bound
from .test_every_method import DIRECT, NUM_EXPERTS, PARAMETERS, SPECTRAL, recipe_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

METHODS = sorted((*SPECTRAL, *DIRECT))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.cpu().double() - expected.double()).norm() / expected.double().norm()).item()


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"]
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_agrees_with_the_cpu(name: str, dtype: torch.dtype) -> None:
    base, vectors = random_experts(NUM_EXPERTS.get(name, 3))
    given = PARAMETERS.get(name, {})
    expected = merge_task_vectors(vectors, name, base=base, **given)
    found = merge_task_vectors([v.to("cuda", dtype) for v in vectors], name, base=base.to("cuda", dtype), **given)
    assert found.device.type == "cuda" and found.dtype == dtype
    if isinstance(get_method(name), SpectralMethod):
        # each step of gradient descent adds a rounding error
        tolerance = merge_tolerance(name, vectors, dtype=dtype, **given) * given.get("iterations", 1) ** 0.5
    else:
        tolerance = rounding_bound(40 * 56, 10.0, dtype)  # base plus delta minus base: the base is ten times as large
    assert difference(found, expected) <= tolerance


@pytest.mark.parametrize("name", SPECTRAL)
def test_factors_agree_with_the_cpu(name: str) -> None:
    factors = random_factors()
    given = PARAMETERS.get(name, {})
    expected = merge_task_vectors(factors, name, **given)
    found = merge_task_vectors([f.to("cuda", torch.float64) for f in factors], name, **given)
    assert difference(found, expected) <= merge_tolerance(name, factors, **given)


@pytest.mark.parametrize("name", METHODS)
def test_a_merge_agrees_with_the_cpu_and_repeats_its_bytes(
    make_models: Callable[..., Any], pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any, name: str
) -> None:
    models = make_models(layers=1)
    recipe = recipe_of(models, name)
    for out, device in (("cpu", "cpu"), ("first", "cuda"), ("second", "cuda")):
        pipeline(recipe, tmp_path / out, store=tmp_path / f"store-{out}", device=device)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    expected, found = load_checkpoint(tmp_path / "cpu"), load_checkpoint(tmp_path / "first")
    assert set(found) == set(expected)
    if name == "arcee_fusion":
        return  # it selects entries by divergences that are smaller than the rounding of float32, as mergekit does
    for key, tensor in expected.items():
        change = tensor - models.base_tensors[key]
        assert (found[key] - tensor).norm() <= 2e-3 * change.norm() + 1e-6 * tensor.norm(), key


@pytest.mark.parametrize(
    "keys",
    [
        {"calibration": {"svc": {"alpha": 0.5}}},
        {"keep_sums": True},
        {"parameters": {"alignment_rho": 0.5}},
        {"dtype": "bfloat16"},
        {"arithmetic": "float64"},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_options_agree_with_the_cpu(
    models: Any, pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any, keys: dict[str, Any]
) -> None:
    recipe = models.recipe("swudi", **keys)
    for device in ("cpu", "cuda"):
        pipeline(recipe, tmp_path / device, store=tmp_path / f"store-{device}", device=device)
    expected, found = load_checkpoint(tmp_path / "cpu"), load_checkpoint(tmp_path / "cuda")
    coarse = 2**-8 if "dtype" in keys else 0.0
    for key, tensor in expected.items():
        change = tensor.float() - models.base_tensors[key].float()
        error = (found[key].float() - tensor.float()).norm()
        assert error <= 2e-3 * change.norm() + (1e-6 + coarse) * tensor.float().norm(), key


def test_a_spectrum_of_the_gpu_is_filtered_on_the_gpu_again(
    models: Any, pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any
) -> None:
    store = tmp_path / "store"
    pipeline(models.recipe("swudi", parameters={"exp_time": 300}), tmp_path / "a", store=store, device="cuda")
    other = models.recipe("swudi", parameters={"exp_time": 1300})
    again = pipeline(other, tmp_path / "b", store=store, device="cuda")
    assert again.decompositions_computed == 0 and again.decompositions_reused > 0
    pipeline(other, tmp_path / "c", store=tmp_path / "other", device="cuda")
    reused, direct = load_checkpoint(tmp_path / "b"), load_checkpoint(tmp_path / "c")
    for key, tensor in direct.items():
        change = tensor - models.base_tensors[key]
        assert (reused[key] - tensor).norm() <= 1e-4 * change.norm() + 1e-6 * tensor.norm(), key


@pytest.mark.parametrize("shape", [(1024, 2048), (2048, 1024)])
@pytest.mark.parametrize("name", ["swudi_a", "tsv_m", "iso_c", "ties", "task_arithmetic"])
def test_gpu_memory_is_within_the_projection(
    save_model: Any, pipeline: Callable[..., Any], tmp_path: Path, name: str, shape: tuple[int, int]
) -> None:
    torch.linalg.eigh(torch.eye(64, device="cuda"))  # loads the libraries
    torch.linalg.svd(torch.eye(64, device="cuda"))
    key = "model.layers.0.mlp.up_proj.weight"
    folders = []
    for index in range(4):
        generator = torch.Generator().manual_seed(index)
        folders.append(save_model(tmp_path / f"m{index}", {key: torch.randn(shape, generator=generator)}))
    recipe = {
        "merge_method": name,
        "base_model": str(folders[0]),
        "models": [{"model": str(folder)} for folder in folders[1:]],
    }
    projected = plan(recipe, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pipeline(recipe, tmp_path / "out", device="cuda")
    used = torch.cuda.max_memory_allocated() - before
    print(f"{name} {shape}: {used / 1e6:.0f} MB on the GPU, projected {projected.peak_bytes / 1e6:.0f} MB")
    assert used <= projected.peak_bytes
