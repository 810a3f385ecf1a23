"""The stored form of sums: which one, its size, and damaged objects are refused."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.numerics.interference.operator import accumulate
from eigenmerge.core.numerics.interference.stored_form import (
    stack_factors,
    stored_elements,
    stored_form,
    unstack_factors,
)
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank


def dense(count: int, rows: int = 6, columns: int = 9, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(count)]


def low_rank(ranks: tuple[int, ...], rows: int = 6, columns: int = 9) -> list[LowRank]:
    generator = torch.Generator().manual_seed(1)
    return [
        LowRank(
            torch.randn(rows, rank, generator=generator, dtype=torch.float64),
            torch.randn(rank, columns, generator=generator, dtype=torch.float64),
        )
        for rank in ranks
    ]


@pytest.mark.parametrize(
    ("shape", "ranks", "all_low_rank", "form"),
    [
        ((64, 64), (4, 4), True, "factors"),
        ((64, 64), (4, 4), False, "operator"),  # a dense expert among them
        ((8, 64), (8, 8), False, "operator"),  # few rows, but dense experts, which are to be read only once
        ((64, 64), (40, 40), True, "operator"),  # so many factors that C is smaller
    ],
)
def test_form(shape: tuple[int, int], ranks: tuple[int, ...], all_low_rank: bool, form: str) -> None:
    assert stored_form(shape, ranks, all_low_rank) == form


def test_elements_are_what_is_stored() -> None:
    operator = accumulate(InMemoryTaskVectors(dense(3)))
    stored = sum(t.numel() for name, t in operator.to_tensors().items() if t.ndim == 2)
    assert stored_elements((6, 9), (6, 6, 6), "operator") == stored
    factors = stack_factors(low_rank((2, 0, 3)))
    assert stored_elements((6, 9), (2, 0, 3), "factors") == factors["left"].numel() + factors["right"].numel()


def test_factors_come_back_one_by_one() -> None:
    experts = low_rank((2, 0, 3))
    for found, given in zip(unstack_factors(stack_factors(experts)), experts, strict=True):
        assert torch.equal(found.left, given.left) and torch.equal(found.right, given.right)


@pytest.mark.parametrize("damage", ["missing", "ranks", "shape", "negative"])
def test_factors_that_do_not_fit_are_refused(damage: str) -> None:
    tensors = stack_factors(low_rank((2, 3)))
    if damage == "missing":
        del tensors["right"]
    elif damage == "ranks":
        tensors["ranks"] = torch.tensor([2, 2])
    elif damage == "negative":
        tensors["ranks"] = torch.tensor([7, -2])
    else:
        tensors["right"] = tensors["right"][:-1]
    with pytest.raises(CorruptObjectError, match="recompute"):
        unstack_factors(tensors)
