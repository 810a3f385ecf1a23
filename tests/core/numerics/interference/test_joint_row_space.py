"""Problems in the joint row space are the original ones in other coordinates."""

from __future__ import annotations

import torch

from eigenmerge.core.numerics.interference.joint_row_space import project_to_row_space
from eigenmerge.core.numerics.interference.operator import accumulate
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_projection_loses_nothing() -> None:
    experts = [normal(0, 2, 20), LowRank(normal(1, 2, 3), normal(2, 3, 20))]
    projected = project_to_row_space(InMemoryTaskVectors(experts))
    assert (projected.shape, projected.num_experts, projected.all_low_rank) == ((2, 5), 2, False)
    assert list(projected.max_ranks) == [2, 3]
    torch.testing.assert_close(projected.basis @ projected.basis.T, torch.eye(5, dtype=torch.float64))
    small_dense, small_factors = projected
    assert isinstance(small_dense, torch.Tensor) and isinstance(small_factors, LowRank)
    torch.testing.assert_close(small_dense @ projected.basis, experts[0])
    assert isinstance(experts[1], LowRank)
    torch.testing.assert_close(small_factors.dense() @ projected.basis, experts[1].dense())


def test_sums_are_rotated() -> None:
    experts = InMemoryTaskVectors([LowRank(normal(i, 4, 2), normal(i + 9, 2, 15)) for i in range(3)])
    projected = project_to_row_space(experts)
    small, large = accumulate(projected), accumulate(experts)
    torch.testing.assert_close(projected.basis.T @ small.C @ projected.basis, large.C)
    torch.testing.assert_close(small.D @ projected.basis, large.D)
    torch.testing.assert_close(small.norms, large.norms)
