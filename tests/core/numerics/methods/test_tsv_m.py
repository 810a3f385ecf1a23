"""TSV-M against the published code at full rank, and its uniqueness on rank-deficient experts."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors
from eigenmerge.core.numerics.tensor_level import merge_task_vectors


def naive_tsv_m(vectors: list[torch.Tensor]) -> torch.Tensor:
    """The published code: d triplets of each expert, including null directions."""
    num = len(vectors)
    per_expert = min(vectors[0].shape) // num
    lefts, values, rights = [], [], []
    for vector in vectors:
        left, value, right = torch.linalg.svd(vector, full_matrices=False)
        lefts.append(left[:, :per_expert])
        values.append(value[:per_expert])
        rights.append(right[:per_expert])

    def polar(matrix: torch.Tensor) -> torch.Tensor:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        return left @ right

    return polar(torch.cat(lefts, dim=1)) @ torch.diag(torch.cat(values)) @ polar(torch.cat(rights))


def _values_tolerance(relative: float, values: torch.Tensor) -> float:
    """The error of a matrix, relative to its norm, as the relative error of its smallest singular value (Weyl)."""
    return relative * (values.norm() / values.min()).item()


@pytest.mark.parametrize(("num", "shape"), [(4, (24, 30)), (3, (31, 20)), (5, (22, 22)), (1, (9, 12))])
def test_equals_the_published_code_at_full_rank(merge, tolerance_of, full_experts, num, shape, relative_error):
    vectors = full_experts(num, *shape)
    expected = naive_tsv_m(vectors)
    assert relative_error(merge("tsv_m", vectors), expected) < tolerance_of("tsv_m", vectors)


def test_singular_values_are_the_union_of_the_experts(merge, tolerance_of, full_experts):
    vectors = full_experts(4, 24, 33)
    union = torch.cat([torch.linalg.svdvals(v)[:6] for v in vectors]).sort(descending=True).values
    assert torch.allclose(
        torch.linalg.svdvals(merge("tsv_m", vectors)),
        union,
        rtol=_values_tolerance(tolerance_of("tsv_m", vectors), union),
    )


def test_rank_deficient_experts_have_a_unique_result_unlike_the_published_code(
    merge, tolerance_of, lora_experts, orthogonal, relative_error
):
    """Trap 4: null directions of the published code have an arbitrary basis."""
    vectors = [v.dense() for v in lora_experts(4, 48, 48, 3)]
    turn = orthogonal(48)
    turned = [v @ turn for v in vectors]
    naive, ours = naive_tsv_m(vectors), merge("tsv_m", vectors)
    assert (naive_tsv_m(turned) @ turn.T - naive).norm() > 0.2 * naive.norm()
    assert relative_error(merge("tsv_m", turned) @ turn.T, ours) < tolerance_of("tsv_m", turned)
    row_space = torch.linalg.svd(torch.cat(vectors), full_matrices=False).Vh[:12]
    assert (ours - ours @ row_space.T @ row_space).norm() < tolerance_of("tsv_m", vectors) * ours.norm()
    union = torch.cat([torch.linalg.svdvals(v)[:3] for v in vectors]).sort(descending=True).values
    assert torch.allclose(
        torch.linalg.svdvals(ours)[:12], union, rtol=_values_tolerance(tolerance_of("tsv_m", vectors), union)
    )


def test_orthogonal_low_rank_experts_are_added_up(merge, tolerance_of, orthogonal, relative_error):
    left, right = orthogonal(20, 1), orthogonal(30, 2)
    vectors = [left[:, 3 * i : 3 * i + 3] @ right[3 * i : 3 * i + 3] * (i + 1) for i in range(4)]
    assert relative_error(merge("tsv_m", vectors), sum(vectors)) < tolerance_of("tsv_m", vectors)


def test_identical_experts_give_their_leading_part_once(merge, tolerance_of, full_experts, relative_error):
    vector = full_experts(1, 21, 25)[0]
    left, values, right = torch.linalg.svd(vector, full_matrices=False)
    expected = (left[:, :7] * values[:7]) @ right[:7]
    assert relative_error(merge("tsv_m", [vector] * 3), expected) < tolerance_of("tsv_m", [vector] * 3)


def test_a_zero_expert_gives_axes_as_published_or_no_direction(merge, tolerance_of, full_experts, relative_error):
    vectors = [*full_experts(3, 20, 24), torch.zeros(20, 24, dtype=torch.float64)]
    expected = naive_tsv_m(vectors)
    assert relative_error(merge("tsv_m", vectors, zero_experts="axes"), expected) < tolerance_of("tsv_m", vectors)

    left_out = merge("tsv_m", vectors)
    turn = torch.linalg.qr(full_experts(1, 24, 24, seed=2)[0]).Q
    turned = merge("tsv_m", [v @ turn for v in vectors], zero_experts="nothing")
    assert relative_error(turned @ turn.T, left_out) < tolerance_of("tsv_m", vectors, zero_experts="nothing")
    assert (merge("tsv_m", [v @ turn for v in vectors]) @ turn.T - expected).norm() > 0.1 * expected.norm()


def test_more_experts_than_directions_give_a_result(merge, full_experts):
    vectors = full_experts(7, 3, 5)
    assert not naive_tsv_m(vectors).any()
    assert merge("tsv_m", vectors).norm() > 0


def test_statistics_contain_the_expert_of_each_direction(full_experts):
    method = get_method("tsv_m")
    assert isinstance(method, SpectralMethod)
    vectors = full_experts(3, 12, 12)
    spectrum = method.decompose(InMemoryTaskVectors(vectors), method.Parameters())
    experts = spectrum.statistics["expert"]
    for value, expert in zip(spectrum.values, experts.int().tolist(), strict=True):
        assert torch.isclose(torch.linalg.svdvals(vectors[expert])[:4], value).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlated_experts_keep_their_weakest_common_direction(dtype: torch.dtype) -> None:
    """The vectors of full-rank experts that share a part are nearly dependent, but no direction is rounding."""
    generator = torch.Generator().manual_seed(1)

    def matrix() -> torch.Tensor:
        left, right = (torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q for _ in "lr")
        return left * torch.arange(1, 65, dtype=torch.float64) ** -0.7 @ right

    common = matrix()
    vectors = [(common + matrix()).to(dtype) for _ in range(8)]
    found = merge_task_vectors(vectors, "tsv_m").double()
    expected = naive_tsv_m([vector.double() for vector in vectors])
    assert (found - expected).norm() < (1e-5 if dtype == torch.float32 else 1e-9) * expected.norm()
