"""Task vectors in memory and as factors: shapes are checked, ranks are known without reading."""

from __future__ import annotations

import re

import pytest
import torch

from eigenmerge.core.errors import ShapeError
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank


def test_factors_are_their_product() -> None:
    factors = LowRank(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0, 5.0]]))
    assert factors.shape == (2, 3)
    assert factors.rank == 1
    assert torch.equal(factors.dense(), torch.tensor([[3.0, 4.0, 5.0], [6.0, 8.0, 10.0]]))
    assert factors.to("cpu", torch.float64).dense().dtype == torch.float64


@pytest.mark.parametrize(("left", "right"), [((2, 3), (2, 4)), ((2,), (2, 4)), ((2, 3), (3, 4, 1))])
def test_factors_that_do_not_fit(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(
        ShapeError, match=re.escape(f"left has shape {left}, right {right}; expected (M, R) and (R, K)")
    ):
        LowRank(torch.zeros(left), torch.zeros(right))


def test_experts_are_yielded_in_order_every_time() -> None:
    given = [torch.full((2, 5), 1.0), LowRank(torch.ones(2, 1), torch.ones(1, 5))]
    experts = InMemoryTaskVectors(iter(given))
    for _ in range(2):
        assert all(found is one for found, one in zip(experts, given, strict=True))
    assert (experts.shape, experts.num_experts, list(experts.max_ranks)) == ((2, 5), 2, [2, 1])
    assert not experts.all_low_rank
    assert InMemoryTaskVectors(given[1:]).all_low_rank


def test_wrong_experts_are_named() -> None:
    with pytest.raises(ShapeError, match="at least one"):
        InMemoryTaskVectors([])
    with pytest.raises(ShapeError, match=re.escape("task vector 1 has shape (3, 2); expected (2, 3)")):
        InMemoryTaskVectors([torch.zeros(2, 3), torch.zeros(3, 2)])
