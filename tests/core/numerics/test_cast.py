"""Casts from float64 round once, to the nearest value, ties to even."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from eigenmerge.core.numerics.cast import round_once

DTYPES = [torch.bfloat16, torch.float16]


def neighbors(value: float, dtype: torch.dtype) -> list[float]:
    """All finite values of a dtype within two steps of torch's own cast."""
    bits = torch.tensor([value], dtype=torch.float64).to(dtype).view(torch.int16).int()
    near = (bits + torch.arange(-2, 3)).to(torch.int16).view(dtype).double()
    return [float(one) for one in near if math.isfinite(one)]


def nearest(value: float, dtype: torch.dtype) -> float:
    """The exact result in rational arithmetic: the nearest value; at equal distance the one with an even last bit."""

    def key(candidate: float) -> tuple[Fraction, int]:
        bits = int(torch.tensor([candidate], dtype=torch.float64).to(dtype).view(torch.int16))
        return abs(Fraction(candidate) - Fraction(value)), bits & 1

    return min(neighbors(value, dtype), key=key)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_beside_a_middle_and_random_ones_are_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-20, 10, (120,), generator=generator)
    values = torch.randn(120, dtype=torch.float64, generator=generator) * 2.0**exponents
    low = values.to(dtype)
    high = (low.view(torch.int16) + 1).view(dtype)
    middle = (low.double() + high.double()) / 2
    beside = [middle, middle * (1 + 2.0**-40), middle * (1 - 2.0**-40), middle * (1 + 2.0**-52)]
    smallest = torch.tensor([2.0**-25, 2.0**-25 * (1 + 2.0**-50), 2.0**-134 * 1.5, 0.0, -0.0], dtype=torch.float64)
    for given in (values, *beside, smallest):
        found = round_once(given, dtype)
        assert found.double().tolist() == [nearest(value, dtype) for value in given.tolist()]
    assert (beside[1].to(dtype) != round_once(beside[1], dtype)).any(), "torch's own cast rounds twice"


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn])
def test_what_needs_no_second_rounding_is_cast_as_torch_does(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, 1e300, 3e38], dtype=torch.float64)
    assert torch.equal(round_once(special, dtype).float().nan_to_num(7), special.to(dtype).float().nan_to_num(7))
    single = torch.randn(50)
    assert torch.equal(round_once(single, dtype), single.to(dtype))
    assert round_once(torch.randn(3, 4, dtype=torch.float64).T, dtype).shape == (4, 3)
    assert torch.equal(round_once(single.double(), torch.float32), single)
