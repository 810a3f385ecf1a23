"""The whole merge on the pretended device, with options that take another route: the numbers are those of the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .device_merges import NORM, WEIGHT, merge_on_device, save_layer

ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16

ROUTES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "swudi": ("swudi", {}, torch.float32),
    "rounded experts": ("swudi_a", {}, BF16),
    "sums are kept": ("swudi", {"keep_sums": True}, BF16),
    "svc after a spectral method": ("tsv_m", {"calibration": {"svc": {"alpha": 0.5}}}, torch.float32),
    "svc after a direct method": ("task_arithmetic", {"calibration": {"svc": {}}}, BF16),
    "aligned layers": ("swudi", {"parameters": {"alignment_rho": 0.5}}, torch.float32),
    "both sides": ("swudi_a", {"parameters": {"side": "both"}}, torch.float32),
    "spectra in part": ("swudi", {"spectra": "top"}, torch.float32),
    "spectra in float32": ("iso_c", {"arithmetic": "float64", "spectra_dtype": "float32"}, torch.float32),
    "no spectra": ("star", {"spectra": "none", "dtype": "bfloat16"}, BF16),
    "selected entries": ("dare_ties", {"parameters": {"density": 0.5}}, BF16),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_agrees_with_the_cpu(
    pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any, route: str
) -> None:
    method, keys, dtype = ROUTES[route]
    recipe = {**save_layer(tmp_path / "models", dtype=dtype), "merge_method": method, **keys}
    pipeline(recipe, tmp_path / "cpu", store=tmp_path / "store-cpu")
    _, counts = merge_on_device(pipeline, recipe, tmp_path / "device", store=tmp_path / "store")
    assert counts.tensors[WEIGHT].operations > 0 < counts.tensors[NORM].operations
    base = load_file(tmp_path / "models" / "model0.safetensors")
    assert_agree(load_checkpoint(tmp_path / "device"), load_checkpoint(tmp_path / "cpu"), base)


def assert_agree(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]
) -> None:
    """Compare merged weights as `tests/integration/test_cuda.py` does."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        coarse = 0.0 if tensor.dtype == torch.float32 else torch.finfo(tensor.dtype).eps
        change = tensor.double() - base.get(name, tensor).double()
        error = (found[name].double() - tensor.double()).norm()
        assert error <= 2e-3 * change.norm() + (1e-6 + coarse) * tensor.double().norm(), name


def test_another_expert_is_added_to_kept_sums(
    pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any
) -> None:
    recipe = {**save_layer(tmp_path / "models", dtype=BF16), "merge_method": "swudi", "keep_sums": True}
    fewer = {**recipe, "models": recipe["models"][:2]}
    merge_on_device(pipeline, fewer, tmp_path / "two", store=tmp_path / "store")
    merge_on_device(pipeline, recipe, tmp_path / "three", store=tmp_path / "store")
    pipeline(recipe, tmp_path / "cpu", store=tmp_path / "store-cpu")
    base = load_file(tmp_path / "models" / "model0.safetensors")
    assert_agree(load_checkpoint(tmp_path / "three"), load_checkpoint(tmp_path / "cpu"), base)


def test_a_kept_spectrum_is_filtered_on_the_device(
    pipeline: Callable[..., Any], tmp_path: Path, load_checkpoint: Any
) -> None:
    recipe = {**save_layer(tmp_path / "models"), "merge_method": "swudi"}
    merge_on_device(pipeline, {**recipe, "parameters": {"exp_time": 300}}, tmp_path / "a", store=tmp_path / "store")
    other = {**recipe, "parameters": {"exp_time": 1300}}
    result, counts = merge_on_device(pipeline, other, tmp_path / "b", store=tmp_path / "store")
    assert result.decompositions_computed == 0 and counts.tensors[WEIGHT].operations > 0
    pipeline(other, tmp_path / "cpu", store=tmp_path / "store-cpu")
    base = load_file(tmp_path / "models" / "model0.safetensors")
    assert_agree(load_checkpoint(tmp_path / "b"), load_checkpoint(tmp_path / "cpu"), base)


# Tests whose merges run on the pretended device: forms of models, adapters and outputs.
AGAIN = [
    "tests/integration/test_every_method.py",
    "tests/integration/test_adapter_forms.py",
    "tests/integration/test_adapter_tokens.py",
    "tests/integration/test_alignment.py",
    "tests/integration/test_border_cases.py",
    "tests/integration/test_float8_output.py",
    "tests/integration/test_incremental.py",
    "tests/integration/test_lora.py",
    "tests/integration/test_many_directions.py",
    "tests/integration/test_mlx_adapter.py",
    "tests/integration/test_sides.py",
    "tests/integration/test_soup.py",
    "tests/integration/test_storage_noise.py",
    "tests/integration/test_stored_precision.py",
    "tests/integration/test_tensor_kinds.py",
    "tests/integration/test_vocabularies.py",
    "tests/core/merging/test_large_values.py",
    "tests/core/steps/test_calibrated_adapter.py",
    "tests/core/steps/test_calibrated_direct.py",
    "tests/core/steps/test_merge_run.py",
    "tests/core/steps/test_mixture_biases.py",
    "tests/core/steps/test_mixture_forms.py",
    "tests/core/steps/test_orientation.py",
    "tests/core/steps/test_top_spectra.py",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", AGAIN)
def test_merges_of_other_tests_pass_on_the_device(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.pretended_device.plugin", file]
    found = subprocess.run(
        [*command, "-m", "not slow and not soak and not gpu and not benchmark"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-5000:]
    counted = re.search(r"pretended device: (\d+) merges, (\d+) operations", found.stdout)
    assert counted is not None and int(counted[1]) > 0 < int(counted[2]), found.stdout[-2000:]
