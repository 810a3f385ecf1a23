"""Task vectors with their sums: decomposed without reading the experts, which stay available for a second pass."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import Factors, apply_factors
from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.interference.operator import accumulate
from eigenmerge.core.numerics.interference.stored_form import reorder_experts
from eigenmerge.core.numerics.interference.summed_task_vectors import SummedTaskVectors
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors


def dense(count: int, rows: int = 6, columns: int = 9, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_decomposition_does_not_read_the_experts() -> None:
    vectors = dense(4)

    class Unreadable(InMemoryTaskVectors):
        def __iter__(self):
            raise AssertionError("the experts are read although their sums are known")

    spectrum = decompose_interference(SummedTaskVectors(accumulate(InMemoryTaskVectors(vectors)), Unreadable(vectors)))
    expected = decompose_interference(InMemoryTaskVectors(vectors), route="gram")
    for block in ("sum", "target"):
        weights = Factors({block: torch.ones(spectrum.num_directions, dtype=torch.float64)}, 1)
        torch.testing.assert_close(apply_factors(spectrum, weights), apply_factors(expected, weights))


def test_energies_of_each_expert_follow_the_order_of_the_plan() -> None:
    vectors = [vector * 10.0**index for index, vector in enumerate(dense(3))]
    added = accumulate(InMemoryTaskVectors([vectors[2], vectors[0], vectors[1]]))
    reordered = reorder_experts(added, [1, 2, 0])
    summed = SummedTaskVectors(reordered, InMemoryTaskVectors(vectors))
    found = decompose_interference(summed, with_expert_energy=True)
    expected = decompose_interference(InMemoryTaskVectors(vectors), route="gram", with_expert_energy=True)
    torch.testing.assert_close(found.info["expert_norms"], expected.info["expert_norms"])
    torch.testing.assert_close(found.statistics["expert_energy"], expected.statistics["expert_energy"])


def test_sums_are_taken_once_and_experts_read_again() -> None:
    vectors = dense(2)
    experts = InMemoryTaskVectors(vectors)
    summed = SummedTaskVectors(accumulate(experts), experts)
    assert torch.equal(summed.take_operator().S, vectors[0] + vectors[1])
    with pytest.raises(AssertionError, match="twice"):
        summed.take_operator()
    for _ in range(2):
        assert all(torch.equal(found, given) for found, given in zip(summed, vectors, strict=True))
    assert (summed.shape, summed.num_experts, list(summed.max_ranks), summed.all_low_rank) == ((6, 9), 2, [6, 6], False)


def test_sums_of_other_experts_are_refused() -> None:
    with pytest.raises(AssertionError):
        SummedTaskVectors(accumulate(InMemoryTaskVectors(dense(3))), InMemoryTaskVectors(dense(2)))
