"""Every method on the pretended device: no operation mixes devices, and the numbers are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core import merge_task_vectors
from eigenmerge.core.numerics.task_vectors import LowRank

from ..core.numerics.conditioning import merge_tolerance, random_experts, random_factors, rounding_bound
from ..integration.test_every_method import DIRECT, NUM_EXPERTS, PARAMETERS, SPECTRAL
from .device_tensor import DeviceTensor
from .mode import pretended_device


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert isinstance(found, DeviceTensor), "the result is on the device of the inputs"
    return float((found.host.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("calibration", [None, {"svc": {"alpha": 0.5}}], ids=["", "svc"])
@pytest.mark.parametrize("name", sorted((*SPECTRAL, *DIRECT)))
def test_dense_task_vectors(name: str, calibration: dict[str, Any] | None) -> None:
    base, vectors = random_experts(NUM_EXPERTS.get(name, 3))
    given = {**PARAMETERS.get(name, {}), "calibration": calibration}
    expected = merge_task_vectors(vectors, name, base=base, **given)
    with pretended_device():
        found = merge_task_vectors([v.to("cuda:0") for v in vectors], name, base=base.to("cuda:0"), **given)
    # base plus delta minus base; a route of its own on a GPU adds another order of sums
    assert difference(found, expected) <= rounding_bound(40 * 56, 100.0, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRAL)
def test_factors(name: str, dtype: torch.dtype) -> None:
    factors = random_factors()
    given = PARAMETERS.get(name, {})
    expected = merge_task_vectors(factors, name, **given)
    with pretended_device():
        moved = [LowRank(one.left.to("cuda:0", dtype), one.right.to("cuda:0", dtype)) for one in factors]
        found = merge_task_vectors(moved, name, **given)
    steps = given.get("iterations", 1)  # each step of gradient descent adds a rounding error
    assert difference(found, expected) <= merge_tolerance(name, factors, dtype=dtype, **given) * steps**0.5


@pytest.mark.parametrize("stored_as", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("handling", ["cut", "shrink"])
def test_rounded_experts(stored_as: torch.dtype, handling: str) -> None:
    generator = torch.Generator().manual_seed(7)
    base = torch.randn((40, 56), generator=generator)
    vectors = [
        0.3 * torch.randn((40, 2), generator=generator) @ torch.randn((2, 56), generator=generator) for _ in "123"
    ]
    rounded = [(base + vector).to(stored_as).float() - base for vector in vectors]
    keys: dict[str, Any] = {"stored_as": stored_as, "storage_noise": handling}
    expected = merge_task_vectors(rounded, "swudi", base=base, **keys)
    with pretended_device():
        found = merge_task_vectors([v.to("cuda:0") for v in rounded], "swudi", base=base.to("cuda:0"), **keys)
    assert difference(found, expected.double()) <= 1e-4
