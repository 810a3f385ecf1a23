"""SLERP and NuSLERP: end points, norm on the circle, and the linear case."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

Make = Callable[..., Any]


X, Y = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_moves_along_the_circle(t: float, merge_direct: Make, in_memory_inputs: Make) -> None:
    merged = merge_direct("slerp", in_memory_inputs([Y], X), t=t)
    angle = t * math.pi / 2
    torch.testing.assert_close(merged, 2 * torch.tensor([math.cos(angle), math.sin(angle)]))


def test_slerp_of_nearly_parallel_models_is_linear(merge_direct: Make, in_memory_inputs: Make) -> None:
    other = torch.tensor([4.0, 0.01])
    merged = merge_direct("slerp", in_memory_inputs([other], X), t=0.25)
    torch.testing.assert_close(merged, 0.75 * X + 0.25 * other)


def test_nuslerp_uses_relative_weights_and_adds_the_base(merge_direct: Make, in_memory_inputs: Make) -> None:
    base = torch.tensor([5.0, 5.0])
    inputs = in_memory_inputs([base + X, base + Y], base)
    merged = merge_direct("nuslerp", inputs, [{"weight": 3.0}, {"weight": 1.0}])
    angle = math.pi / 8
    torch.testing.assert_close(merged, base + 2 * torch.tensor([math.cos(angle), math.sin(angle)]))


def test_nuslerp_with_one_angle_per_row_or_column(merge_direct: Make, in_memory_inputs: Make) -> None:
    x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    half = 0.5**0.5
    rows = merge_direct("nuslerp", in_memory_inputs([x, y]), nuslerp_flatten=False)
    torch.testing.assert_close(rows, torch.tensor([[half, half], [1.0, 0.0]]))
    transposed = in_memory_inputs([x.T.contiguous(), y.T.contiguous()])
    columns = merge_direct("nuslerp", transposed, nuslerp_flatten=False, nuslerp_row_wise=True)
    torch.testing.assert_close(columns, rows.T)
