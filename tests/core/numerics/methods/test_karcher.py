"""Karcher mean: the midpoint of an arc, and models of different norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_two_directions_give_the_middle_of_the_arc(merge_direct: Make, in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])])
    torch.testing.assert_close(merge_direct("karcher", inputs), torch.tensor([2.0, 2.0]) / 2**0.5)


def test_the_mean_minimizes_the_sum_of_squared_angles(merge_direct: Make, in_memory_inputs: Make) -> None:
    generator = torch.Generator().manual_seed(3)
    models = [torch.rand(5, generator=generator, dtype=torch.float64) + 0.1 for _ in range(4)]
    merged = merge_direct("karcher", in_memory_inputs(models), max_iter=100, tol=1e-12)

    def spread(point: torch.Tensor) -> float:
        cosines = [point @ model / (point.norm() * model.norm()) for model in models]
        return sum(float(cosine.clamp(max=1).acos()) ** 2 for cosine in cosines)

    for seed in range(5):
        step = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert spread(merged + 1e-3 * step) > spread(merged)
