"""Subspace Boosting against the published code at full rank; null directions are not raised."""

from __future__ import annotations

import pytest
import torch


def naive_boosting(total: torch.Tensor, beta: float) -> torch.Tensor:
    """The paper's published code on one matrix."""
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    cutoff = (values.cumsum(0) / values.sum() >= beta).nonzero()[0].item()
    return (left * values.clamp(min=values[cutoff])) @ right


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(20, 31), (31, 20)])
def test_equals_the_published_code_at_full_rank(merge, tolerance_of, full_experts, shape, beta, relative_error):
    vectors = full_experts(3, *shape)
    expected = naive_boosting(sum(vectors), beta)
    assert relative_error(merge("subspace_boosting", vectors, beta=beta), expected) < tolerance_of(
        "subspace_boosting", vectors, beta=beta
    )


def test_leading_values_stay_and_later_ones_are_raised(merge, full_experts):
    total = sum(full_experts(4, 16, 16))
    before, after = torch.linalg.svdvals(total), torch.linalg.svdvals(merge("subspace_boosting", [total], beta=0.4))
    cutoff = int((before.cumsum(0) / before.sum() < 0.4).sum())
    assert cutoff >= 2
    assert torch.allclose(after[: cutoff + 1], before[: cutoff + 1])
    assert torch.allclose(after[cutoff:], before[cutoff].expand(16 - cutoff))


def test_beta_one_is_task_arithmetic(merge, tolerance_of, full_experts, relative_error):
    vectors = full_experts(3, 14, 10)
    assert relative_error(merge("subspace_boosting", vectors, beta=1.0), sum(vectors)) < tolerance_of(
        "subspace_boosting", vectors, beta=1.0
    )


def test_null_directions_are_not_raised(merge, lora_experts, orthogonal):
    vectors = [v.dense() for v in lora_experts(3, 30, 30, 2)]
    turn = orthogonal(30)
    naive = naive_boosting(sum(vectors), 0.3)
    assert (naive_boosting(sum(vectors) @ turn, 0.3) @ turn.T - naive).norm() > 0.5 * naive.norm()
    assert torch.linalg.matrix_rank(merge("subspace_boosting", vectors, beta=0.3)) == 6
