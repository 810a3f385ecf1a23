"""Adam on C and D equals torch's Adam on theta, stays at solutions, and its result is returned as singular triplets."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.interference.iterate import adam_displacement, factors_of_iterate, spectrum_of_iterate
from eigenmerge.core.numerics.interference.operator import accumulate
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_steps_are_those_of_torch() -> None:
    root, D, start = normal(0, 6, 6) / 3, normal(1, 4, 6), normal(2, 4, 6)
    C = root @ root.T
    theta = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([theta], lr=1e-2)
    for _ in range(30):
        theta.grad = 2 * (theta.detach() @ C - D)
        optimizer.step()
    moved = adam_displacement(C, D - start @ C, iterations=30, learning_rate=1e-2)
    # 30 steps move an entry by at most 0.3; half of float64's digits are left to the division by small gradients
    torch.testing.assert_close(start + moved, theta.detach(), rtol=0, atol=0.3e-8)


def test_a_residual_of_zero_does_not_move() -> None:
    moved = adam_displacement(normal(0, 5, 5), torch.zeros(3, 5).double(), iterations=10, learning_rate=0.1)
    assert not moved.any()


@pytest.mark.parametrize("anchor_factor", [1.0, 0.0])
def test_the_spectrum_gives_the_iterate(anchor_factor: float) -> None:
    operator = accumulate(InMemoryTaskVectors([normal(i, 4, 6) for i in range(3)]))
    settings = {"iterations": 5, "learning_rate": 1e-3}
    spectrum = spectrum_of_iterate("kind", operator, anchor_factor, **settings)  # pyright: ignore[reportArgumentType]
    start = anchor_factor * operator.S
    expected = start + adam_displacement(operator.C, operator.D - start @ operator.C, **settings)  # pyright: ignore
    torch.testing.assert_close(apply_factors(spectrum, factors_of_iterate(spectrum, 1.0)), expected)
    torch.testing.assert_close(apply_factors(spectrum, factors_of_iterate(spectrum, -0.5)), -0.5 * expected)
    assert spectrum.num_experts == 3


def test_zero_experts_have_no_directions() -> None:
    operator = accumulate(InMemoryTaskVectors([torch.zeros(3, 4)] * 2))
    assert spectrum_of_iterate("kind", operator, 1.0, iterations=3, learning_rate=1e-3).num_directions == 0
