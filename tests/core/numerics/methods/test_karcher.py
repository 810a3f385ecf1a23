"""Karcher mean: the midpoint of an arc, and models of different norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from eigenmerge.core.numerics.methods.karcher import karcher_coefficients

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


class Counted:
    """Inputs that count how often a model is read."""

    name, seed, base = "w", 0, None

    def __init__(self, models: list[torch.Tensor]) -> None:
        self.models, self.num_experts, self.reads = models, len(models), 0

    def experts(self) -> Iterator[torch.Tensor]:
        for model in self.models:
            self.reads += 1
            yield model.clone()

    def is_base(self, index: int) -> bool:
        return False


def test_steps_end_at_the_precision_of_the_tensor(merge_direct: Make) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(40, 30, generator=generator)
    inputs = Counted([base + 0.1 * torch.randn(40, 30, generator=generator) for _ in range(3)])
    merge_direct("karcher", inputs, max_iter=20000, tol=1e-12)
    assert inputs.reads <= 8 * 3


def test_many_iterations_work_on_inner_products(merge_direct: Make) -> None:
    """Directions far from each other converge slowly: 20,000 iterations are not 20,000 passes."""
    generator = torch.Generator().manual_seed(2)
    models = [torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(5)]
    inputs = Counted(models)
    merged = merge_direct("karcher", inputs, max_iter=20000, tol=1e-13)
    assert inputs.reads <= 11 * 5 + 5 * 5 * 2 + 5
    units = [model / model.norm() for model in models]
    mean = merged / merged.norm()
    step = sum(
        torch.acos(mean @ unit) / torch.sin(torch.acos(mean @ unit)) * (unit - (mean @ unit) * mean) for unit in units
    )
    assert float(torch.as_tensor(step).norm()) < 1e-11  # the gradient vanishes


def test_coefficients_of_orthogonal_directions_are_equal() -> None:
    coefficients = karcher_coefficients(torch.eye(4, dtype=torch.float64), 10, 1e-12)
    torch.testing.assert_close(coefficients, torch.full((4,), 0.5, dtype=torch.float64))
