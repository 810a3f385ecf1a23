"""DC-Merge against the published codes step by step, its symmetries, and what it gives where they are arbitrary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.elementwise.trimmed_consensus import trimmed_consensus
from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

from ....golden.published_dc_merge import published_dc_merge

AGREEMENT = 1e-8
SHAPES = [(4, (48, 60)), (3, (62, 40)), (5, (44, 44))]


@pytest.mark.parametrize(("num", "shape"), SHAPES)
@pytest.mark.parametrize("density", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_code_for_full_fine_tuning(merge, full_experts, relative_error, num, shape, density, masked):
    vectors = full_experts(num, *shape)
    expected = published_dc_merge(vectors, density=density, masked=masked)
    assert expected.norm() > 0
    found = merge("dc_merge", vectors, density=density, structural_mask=masked)
    assert relative_error(found, expected) < AGREEMENT
    single = merge("dc_merge", [v.float() for v in vectors], density=density, structural_mask=masked)
    assert relative_error(single, expected) < 1e-4


@pytest.mark.parametrize("smoothing", ["none", "average", "linear"])
@pytest.mark.parametrize("ratio", [2.0, 5.0])
def test_equals_the_code_for_lora(merge, lora_experts, relative_error, smoothing, ratio):
    experts = lora_experts(4, 70, 90, 6)
    expected = published_dc_merge([v.dense() for v in experts], 6, smoothing, ratio, density=0.02)
    parameters: dict[str, Any] = {"rank": 6, "smoothing": smoothing, "smoothing_ratio": ratio, "density": 0.02}
    assert relative_error(merge("dc_merge", experts, **parameters), expected) < AGREEMENT
    assert relative_error(merge("dc_merge", [v.dense() for v in experts], **parameters), expected) < AGREEMENT


@pytest.mark.parametrize("smoothing", ["none", "average", "linear"])
def test_smoothing_keeps_the_sum_of_the_singular_values(merge, full_experts, smoothing):
    """One expert that keeps all entries: the values of the result are the smoothed ones."""
    vector = full_experts(1, 20, 24)[0]
    given = torch.linalg.svdvals(vector)
    found = torch.linalg.svdvals(merge("dc_merge", [vector], smoothing=smoothing, smoothing_ratio=3.0, density=1.0))
    torch.testing.assert_close(found.sum(), given.sum())
    ratio = {"none": given[0] / given[-1], "average": torch.tensor(1.0), "linear": torch.tensor(3.0)}[smoothing]
    torch.testing.assert_close(found[0] / found[-1], ratio.double())


def test_one_expert_gives_its_leading_triplets_as_the_published_code(merge, full_experts, relative_error):
    vector = full_experts(1, 60, 50)[0]  # 0.001 of 2500 entries are 2
    left, values, right = torch.linalg.svd(vector, full_matrices=False)
    expected = (left[:, :2] * values[:2]) @ right[:2]
    assert relative_error(merge("dc_merge", [vector]), expected) < AGREEMENT
    assert relative_error(published_dc_merge([vector]), expected) < AGREEMENT
    assert relative_error(merge("dc_merge", [vector], density=1.0), vector) < AGREEMENT


@pytest.mark.parametrize("smoothing", ["none", "average"])
def test_orthogonal_experts_are_added_up(merge, orthogonal, relative_error, smoothing):
    left, right = orthogonal(40, 1), orthogonal(48, 2)
    size = {"none": torch.tensor([3.0, 2.0, 1.0]), "average": torch.ones(3)}[smoothing].double()
    vectors = [(i + 1) * (left[:, 3 * i : 3 * i + 3] * size) @ right[3 * i : 3 * i + 3] for i in range(4)]
    for density in (0.002, 0.5, 1.0):  # 3 of 1600 entries; all
        found = merge("dc_merge", vectors, smoothing=smoothing, density=density)
        assert relative_error(found, sum(vectors)) < AGREEMENT


@pytest.mark.parametrize("smoothing", ["none", "average", "linear"])
def test_symmetries(merge, full_experts, relative_error, smoothing):
    vectors = full_experts(4, 40, 52)
    parameters = {"smoothing": smoothing, "density": 0.03}
    expected = merge("dc_merge", vectors, **parameters)
    transposed = merge("dc_merge", [v.T.contiguous() for v in vectors], **parameters)
    assert relative_error(transposed.T, expected) < AGREEMENT
    assert relative_error(merge("dc_merge", [-1e-3 * v for v in vectors], **parameters), -1e-3 * expected) < AGREEMENT
    assert relative_error(merge("dc_merge", vectors[::-1], **parameters), expected) < AGREEMENT
    assert relative_error(merge("dc_merge", vectors, scale=0.5, **parameters), 0.5 * expected) < AGREEMENT


def test_identical_experts_have_a_unique_result_unlike_the_published_code(
    merge, full_experts, orthogonal, relative_error
):
    """The cover basis of dependent vectors is arbitrary; shared directions give their part, divided by their number."""
    vector, turn = full_experts(1, 21, 25)[0], orthogonal(25)
    left, values, right = torch.linalg.svd(vector, full_matrices=False)
    expected = (left[:, :7] * values[:7]) @ right[:7] / 3
    assert relative_error(merge("dc_merge", [vector] * 3, density=1.0), expected) < AGREEMENT
    published = published_dc_merge([vector] * 3, density=1.0)
    turned = published_dc_merge([vector @ turn] * 3, density=1.0)
    assert relative_error(turned @ turn.T, published) > 0.05


def test_opposite_experts_give_zero(merge, full_experts):
    vector = full_experts(1, 20, 24)[0]
    assert merge("dc_merge", [vector, -vector], density=1.0).norm() < AGREEMENT * vector.norm()


def test_a_zero_expert_has_no_directions_but_counts(merge, full_experts, relative_error):
    vectors = full_experts(3, 40, 48)
    zero = torch.zeros(40, 48, dtype=torch.float64)
    found = merge("dc_merge", [*vectors, zero], density=0.05)
    assert found.norm() > 0
    assert relative_error(merge("dc_merge", [zero, *vectors], density=0.05), found) < AGREEMENT
    assert torch.linalg.matrix_rank(found) <= 30  # 40 / 4 of each of three


def test_more_experts_than_directions_give_a_result(merge, full_experts):
    vectors = full_experts(7, 3, 5)
    assert merge("dc_merge", vectors).norm() > 0


def test_statistics_contain_the_expert_of_each_direction(full_experts):
    method = get_method("dc_merge")
    assert isinstance(method, SpectralMethod)
    spectrum = method.decompose(InMemoryTaskVectors(full_experts(3, 30, 30)), method.Parameters(density=1.0))
    assert spectrum.statistics["expert"].int().bincount().tolist() == [10, 10, 10]


def test_the_consensus_is_the_mean_of_the_entries_with_the_sign_of_the_sum():
    matrices = [
        torch.tensor([[3.0, -1.0, 2.0, 0.1]], dtype=torch.float64),
        torch.tensor([[1.0, 4.0, -2.0, 0.1]], dtype=torch.float64),
        torch.tensor([[-1.5, 2.0, 0.0, 0.1]], dtype=torch.float64),
    ]
    expected = torch.tensor([[2.0, 3.0, 0.0, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(trimmed_consensus(matrices, 4), expected)
    expected = torch.tensor([[0.75, 3.0, 0.0, 0.0]], dtype=torch.float64)
    matrices = [matrix * torch.tensor([[-1.0, 1.0, 1.0, 1.0]]) for matrix in matrices]
    matrices[0][0, 0] = 0.0
    expected = torch.tensor([[1.5, 3.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(trimmed_consensus(matrices, 2), expected)
