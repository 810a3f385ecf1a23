"""Iso-C against the published code at full rank, and its uniqueness on rank-deficient experts."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.task_vectors import LowRank

from ..conditioning import rounding_bound, squared_condition


def naive_iso_c(vectors: list[torch.Tensor]) -> torch.Tensor:
    """The published code: all min(M, K) directions, with the basis of the null space that the SVD returns."""
    left, values, right = torch.linalg.svd(sum(vectors), full_matrices=False)
    return left @ torch.diag(torch.ones_like(values) * values.mean()) @ right


@pytest.mark.parametrize("shape", [(30, 18), (18, 30), (21, 21)])
def test_equals_the_published_code_at_full_rank(merge, tolerance_of, full_experts, shape, relative_error):
    vectors = full_experts(4, *shape)
    expected = naive_iso_c(vectors)
    assert relative_error(merge("iso_c", vectors), expected) < tolerance_of("iso_c", vectors)


def test_is_mean_sigma_times_the_polar_factor(merge, full_experts, relative_error):
    total = sum(full_experts(3, 40, 16))
    eigenvalues, basis = torch.linalg.eigh(total.T @ total)
    inverse_root = (basis * eigenvalues.rsqrt()) @ basis.T
    # this formula inverts a Gram matrix; the condition of that is the square of the matrix's
    expected = torch.linalg.svdvals(total).mean() * total @ inverse_root
    assert relative_error(merge("iso_c", full_experts(3, 40, 16)), expected) < rounding_bound(
        40, squared_condition(total)
    )


@pytest.mark.parametrize("rank", [1, 2, 6, 12])
def test_keeps_the_nuclear_norm_at_any_rank(merge, tolerance_of, lora_experts, rank):
    vectors = lora_experts(2, 24, 30, rank)
    dense = [v.dense() for v in vectors]
    expected = torch.linalg.matrix_norm(sum(dense), "nuc")
    for given in (vectors, dense):
        assert torch.linalg.matrix_norm(merge("iso_c", given), "nuc") == pytest.approx(
            expected.item(), rel=tolerance_of("iso_c", given)
        )


def test_rank_deficient_sums_have_a_unique_result_unlike_the_published_code(
    merge, tolerance_of, lora_experts, orthogonal, relative_error
):
    """Trap 4: three quarters of the published result are in the null space, in an arbitrary basis."""
    vectors = [v.dense() for v in lora_experts(4, 48, 48, 3)]
    turn = orthogonal(48)
    turned = [v @ turn for v in vectors]

    naive = naive_iso_c(vectors)
    assert (naive_iso_c(turned) @ turn.T - naive).norm() > 0.5 * naive.norm()
    row_space = torch.linalg.svd(torch.cat(vectors), full_matrices=False).Vh[:12]
    assert (naive @ row_space.T).norm() ** 2 < 0.3 * naive.norm() ** 2

    ours = merge("iso_c", vectors)
    assert relative_error(merge("iso_c", turned) @ turn.T, ours) < tolerance_of("iso_c", turned)
    assert (ours - ours @ row_space.T @ row_space).norm() < tolerance_of("iso_c", vectors) * ours.norm()
    # The part of the published result in the row space equals ours up to the mean: sum/48 instead of sum/12.
    assert relative_error((naive @ row_space.T @ row_space) * 48 / 12, ours) < tolerance_of("iso_c", vectors)


def test_experts_that_cancel_give_zero(merge, full_experts):
    one, other = full_experts(2, 20, 20)
    assert not merge("iso_c", [one, other, -one - other]).any()
    factors = LowRank(one[:, :3], other[:3])
    assert not merge("iso_c", [factors, LowRank(-factors.left, factors.right)]).any()


def test_one_expert_keeps_its_directions(merge, tolerance_of, full_experts):
    vector = full_experts(1, 12, 17)[0]
    left, values, right = torch.linalg.svd(vector, full_matrices=False)
    assert (merge("iso_c", [vector]) - values.mean() * left @ right).norm() < tolerance_of(
        "iso_c", [vector]
    ) * vector.norm()
