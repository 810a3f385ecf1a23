"""The sums of OptMerge are the normal equations of its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.interference.operator import accumulate
from eigenmerge.core.numerics.interference.optmerge_operator import (
    optmerge_operator,
    optmerge_spectrum,
    truncation_rank,
)
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

VARIANTS = ("full", "lora")


def experts(count: int = 3, rows: int = 9, columns: int = 12, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn((count, rows, columns), generator=generator, dtype=torch.float64) / 20)


def loss(theta: torch.Tensor, vectors: list[torch.Tensor], variant: str) -> torch.Tensor:
    """Return sum_i w_i ||(theta - tau_i) B_i^T||^2."""
    K = min(vectors[0].shape) // len(vectors)
    mean = sum(vectors) / len(vectors)
    total = torch.zeros((), dtype=theta.dtype)
    for v in vectors:
        shift = mean if variant == "full" else torch.zeros_like(v)
        U, s, Vh = torch.linalg.svd(v - shift, full_matrices=False)
        target = U[:, :K] * s[:K] @ Vh[:K] + shift
        _, s, Vh = torch.linalg.svd(v, full_matrices=False)
        total = total + ((theta - target) @ (s[:K, None] * Vh[:K]).T).square().sum() / v.square().sum()
    return total


@pytest.mark.parametrize("variant", VARIANTS)
def test_operator_is_the_gradient_of_the_loss(variant: Any) -> None:
    vectors = experts()
    operator = optmerge_operator(InMemoryTaskVectors(vectors), variant, truncation_rank((9, 12), 3))
    theta = torch.randn((9, 12), generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta, vectors, variant), theta)
    torch.testing.assert_close(2 * (theta.detach() @ operator.C - operator.D), gradient)
    torch.testing.assert_close(operator.S, sum(vectors))


def test_one_expert_is_not_truncated() -> None:
    vectors = experts(1, 4, 6)
    operator = optmerge_operator(InMemoryTaskVectors(vectors), "lora", truncation_rank((4, 6), 1))
    wudi = accumulate(InMemoryTaskVectors(vectors))
    for name in ("C", "D", "S", "norms"):
        torch.testing.assert_close(operator.to_tensors()[name], wudi.to_tensors()[name])


def test_truncation_rank() -> None:
    assert truncation_rank((12, 9), 3) == 3
    assert truncation_rank((2, 9), 5) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_experts(variant: Any) -> None:
    one = experts(1, 4, 6)[0]
    vectors = InMemoryTaskVectors([one, torch.zeros_like(one)])
    operator = optmerge_operator(vectors, variant, truncation_rank((4, 6), 2))
    assert operator.num_experts == 2
    assert operator.num_nonzero == 1
    assert operator.C.isfinite().all() and operator.D.isfinite().all()
    nothing = optmerge_spectrum(InMemoryTaskVectors([torch.zeros_like(one)] * 2), variant)
    assert nothing.num_directions == 0
