"""Iso-CTS against the published code at full rank, and its uniqueness on rank-deficient experts."""

from __future__ import annotations

import pytest
import torch


def naive_iso_cts(vectors: list[torch.Tensor], fraction: float = 0.8) -> torch.Tensor:
    """The published code, including null directions."""
    num, size = len(vectors), min(vectors[0].shape)
    specific = round((size - int(size * fraction)) / num)
    common = size - specific * num
    left, values, right = torch.linalg.svd(sum(vectors), full_matrices=False)
    lefts, sigmas, rights = [left[:, :common]], [values[:common]], [right[:common]]
    for vector in vectors:
        residual = vector - left[:, :common] @ left[:, :common].T @ vector
        own_left, own_values, own_right = torch.linalg.svd(residual, full_matrices=False)
        lefts.append(own_left[:, :specific])
        sigmas.append(own_values[:specific])
        rights.append(own_right[:specific])

    def polar(matrix: torch.Tensor) -> torch.Tensor:
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        return u @ v

    return torch.cat(sigmas).mean() * polar(torch.cat(lefts, dim=1)) @ polar(torch.cat(rights))


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(("num", "shape"), [(4, (24, 30)), (3, (31, 20)), (5, (22, 22)), (1, (9, 12))])
def test_equals_the_published_code_at_full_rank(
    merge, tolerance_of, full_experts, num, shape, fraction, relative_error
):
    vectors = full_experts(num, *shape)
    expected = naive_iso_cts(vectors, fraction)
    assert relative_error(merge("iso_cts", vectors, common_fraction=fraction), expected) < tolerance_of(
        "iso_cts", vectors, common_fraction=fraction
    )


@pytest.mark.parametrize("is_lora", [False, True])
def test_all_common_is_iso_c(merge, tolerance_of, full_experts, lora_experts, is_lora, relative_error):
    vectors = lora_experts(3, 40, 30, 2) if is_lora else full_experts(3, 18, 25)
    expected = merge("iso_c", vectors)
    assert relative_error(merge("iso_cts", vectors, common_fraction=1.0), expected) < tolerance_of(
        "iso_cts", vectors, common_fraction=1.0
    )


def test_result_is_isotropic(merge, tolerance_of, full_experts):
    vectors = full_experts(4, 20, 28)
    values = torch.linalg.svdvals(merge("iso_cts", vectors))
    assert values.max() / values.min() < 1 + tolerance_of("iso_cts", vectors)


def test_rank_deficient_experts_have_a_unique_result_unlike_the_published_code(
    merge, tolerance_of, lora_experts, orthogonal, relative_error
):
    """Trap 4: null directions of the published code have an arbitrary basis."""
    vectors = [v.dense() for v in lora_experts(4, 48, 48, 3)]
    turn = orthogonal(48)
    turned = [v @ turn for v in vectors]
    naive, ours = naive_iso_cts(vectors), merge("iso_cts", vectors)
    assert (naive_iso_cts(turned) @ turn.T - naive).norm() > 0.5 * naive.norm()
    assert relative_error(merge("iso_cts", turned) @ turn.T, ours) < tolerance_of("iso_cts", turned)
    row_space = torch.linalg.svd(torch.cat(vectors), full_matrices=False).Vh[:12]
    assert (ours - ours @ row_space.T @ row_space).norm() < tolerance_of("iso_cts", vectors) * ours.norm()


def test_opposite_parts_of_low_rank_experts_cancel(merge, tolerance_of, orthogonal):
    """A part that cancels in the sum remains in both residuals with opposite signs, and cancels there too."""
    left, right = orthogonal(30, 1), orthogonal(30, 2)
    opposite = torch.outer(left[:, 0], right[0])
    vectors = [opposite + torch.outer(left[:, 1], right[1]), -opposite + torch.outer(left[:, 2], right[2])]
    result = merge("iso_cts", vectors, common_fraction=0.5)
    assert (left[:, 0] @ result).norm() < tolerance_of("iso_cts", vectors, common_fraction=0.5) * result.norm()
    assert torch.linalg.matrix_rank(result) == 2
    changed = [v + 1e-10 * torch.outer(left[:, 5], right[6]) for v in vectors]
    assert (merge("iso_cts", changed, common_fraction=0.5) - result).norm() < 1e-8
    assert (naive_iso_cts(changed, 0.5) - naive_iso_cts(vectors, 0.5)).norm() > 0.1 * naive_iso_cts(vectors, 0.5).norm()


def test_identical_experts_have_a_unique_result(merge, tolerance_of, full_experts, orthogonal, relative_error):
    vector = full_experts(1, 20, 24)[0]
    turn = orthogonal(24)
    ours = merge("iso_cts", [vector] * 3)
    assert relative_error(merge("iso_cts", [vector @ turn] * 3) @ turn.T, ours) < tolerance_of(
        "iso_cts", [vector @ turn] * 3
    )
    naive = naive_iso_cts([vector] * 3)
    assert (naive_iso_cts([vector @ turn] * 3) @ turn.T - naive).norm() > 0.05 * naive.norm()


def test_a_zero_expert_gives_axes_as_published_or_no_direction(merge, tolerance_of, full_experts, relative_error):
    vectors = [*full_experts(3, 20, 24), torch.zeros(20, 24, dtype=torch.float64)]
    expected = naive_iso_cts(vectors)
    assert relative_error(merge("iso_cts", vectors, zero_experts="axes"), expected) < tolerance_of("iso_cts", vectors)
    turn = torch.linalg.qr(full_experts(1, 24, 24, seed=2)[0]).Q
    left_out = merge("iso_cts", vectors)
    turned = merge("iso_cts", [v @ turn for v in vectors], zero_experts="nothing")
    assert relative_error(turned @ turn.T, left_out) < tolerance_of("iso_cts", vectors, zero_experts="nothing")


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_a_small_common_fraction_takes_no_more_directions_than_exist(merge, full_experts, fraction):
    result = merge(
        "iso_cts", full_experts(4, 10, 13), common_fraction=fraction
    )  # 10 directions, 4 experts: 3 each is 12
    assert result.isfinite().all() and result.norm() > 0
