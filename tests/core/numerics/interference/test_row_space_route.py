"""The row-space route resolves singular values that squaring loses, and never forms a K x K matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.interference.gram_route import spectrum_of_operator
from eigenmerge.core.numerics.interference.operator import accumulate
from eigenmerge.core.numerics.interference.row_space_route import decompose_row_space
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

from ..conditioning import rounding_bound


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=4), is_dense=st.booleans())
def test_the_spectrum_is_that_of_the_sums(seed: int, ranks: list[int], is_dense: bool) -> None:
    columns = sum(ranks) + 2
    factors = [LowRank(normal(seed + i, 5, rank), normal(seed - i - 1, rank, columns)) for i, rank in enumerate(ranks)]
    experts = InMemoryTaskVectors([normal(seed + 50, 1, columns).expand(5, -1).contiguous()] if is_dense else factors)
    spectrum, operator = decompose_row_space(experts), accumulate(experts)
    tolerance = rounding_bound(columns) * max(1.0, operator.S.norm().item()) * len(ranks)
    values = spectrum.values
    assert (values[:-1] >= values[1:]).all()
    torch.testing.assert_close(
        spectrum.right.T @ (values.unsqueeze(1) * spectrum.right), operator.C, rtol=0, atol=tolerance
    )
    torch.testing.assert_close(spectrum.left["sum"].T @ spectrum.right, operator.S, rtol=0, atol=tolerance)
    torch.testing.assert_close(spectrum.left["target"].T @ spectrum.right, operator.D, rtol=0, atol=tolerance)
    torch.testing.assert_close(spectrum.statistics["expert_energy"].sum(dim=1), values, rtol=0, atol=tolerance)


def test_many_adapters_and_a_dense_expert_are_multiplied_together() -> None:
    """More rows than one product takes, with a dense expert between adapters."""
    columns = 700
    adapters = [LowRank(normal(i, 30, 8), normal(-i - 1, 8, columns)) for i in range(40)]
    experts = InMemoryTaskVectors([*adapters[:20], normal(99, 30, columns), *adapters[20:]])
    spectrum, operator = decompose_row_space(experts), accumulate(experts)
    tolerance = rounding_bound(columns) * operator.S.norm().item() * len(experts.max_ranks)
    torch.testing.assert_close(spectrum.left["sum"].T @ spectrum.right, operator.S, rtol=0, atol=tolerance)
    torch.testing.assert_close(spectrum.left["target"].T @ spectrum.right, operator.D, rtol=0, atol=tolerance)
    energies = spectrum.statistics["expert_energy"].sum(dim=1)
    torch.testing.assert_close(energies, spectrum.values, rtol=0, atol=tolerance)


def test_small_singular_values_are_resolved() -> None:
    # eigenvalues of C are 1 and 1e-20: below float64's epsilon, while the singular values 1 and 1e-10 are above it
    vector = torch.zeros(2, 5, dtype=torch.float64)
    vector[0, 0], vector[1, 1] = 1.0, 1e-10
    experts = InMemoryTaskVectors([vector, vector])
    spectrum = decompose_row_space(experts)
    assert spectrum.values.tolist() == pytest.approx([2.0, 2e-20], rel=1e-12)
    assert spectrum.statistics["resolved"].tolist() == [1, 1]
    assert spectrum_of_operator(accumulate(experts)).info["num_resolved"] == 1


def test_experts_that_are_zero_get_no_energy() -> None:
    zero = LowRank(torch.zeros(4, 2).double(), normal(0, 2, 9))
    spectrum = decompose_row_space(InMemoryTaskVectors([LowRank(normal(1, 4, 2), normal(2, 2, 9)), zero]))
    assert not spectrum.statistics["expert_energy"][:, 1].any()
    assert spectrum.info["expert_norms"][1] == 0.0  # pyright: ignore[reportIndexIssue]
    assert decompose_row_space(InMemoryTaskVectors([zero, zero])).num_directions == 0
