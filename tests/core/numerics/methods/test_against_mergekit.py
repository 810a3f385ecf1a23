"""Deterministic direct methods against results of mergekit 0.1.5 (tests/golden/make_mergekit_golden.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.numerics.method import DirectMethod
from eigenmerge.core.numerics.registry import get_method

from ..conditioning import rounding_bound

GOLDEN = Path(__file__).parents[3] / "golden"
CASES = json.loads((GOLDEN / "mergekit.json").read_text())
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# mergekit counts ramplus_tl's overlaps in float64 but divides them in float32
DIVIDED_IN_FLOAT32 = {("ramplus_tl", "float64")}


def tolerance(case: dict[str, Any], dtype: str, num_elements: int) -> float:
    """Entries are of order one. 1e-6 in float32 is the agreement with mergekit that the project promises."""
    if (case["method"], dtype) in DIVIDED_IN_FLOAT32:
        return torch.finfo(torch.float32).eps
    return 1e-6 if dtype == "float32" else rounding_bound(num_elements)


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "mergekit.safetensors")


def merge_case(case: dict[str, Any], dtype: torch.dtype, in_memory_inputs: Callable[..., Any], **options: Any):
    """Return the merged tensor of a case, and the inputs."""
    method = get_method(case["method"])
    assert isinstance(method, DirectMethod)
    prefix = f"inputs/{case['inputs']}/"
    base = golden()[prefix + "base"].to(dtype) if case["base"] else None
    tensors = [golden()[f"{prefix}{i}"].to(dtype) for i in range(len(case["experts"]))]
    inputs = in_memory_inputs(tensors, base, **options)
    parameters = method.Parameters(**case["parameters"])
    return method.merge(inputs, parameters, [method.Expert(**each) for each in case["experts"]]), inputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_equals_mergekit(case: dict[str, Any], dtype: str, in_memory_inputs: Callable[..., Any]) -> None:
    merged, _ = merge_case(case, DTYPES[dtype], in_memory_inputs)
    expected = golden()[f"{case['name']}/{dtype}"]
    assert merged.dtype == expected.dtype
    assert merged.shape == expected.shape
    allowed = tolerance(case, dtype, expected.numel())
    torch.testing.assert_close(merged, expected, rtol=allowed, atol=allowed)
