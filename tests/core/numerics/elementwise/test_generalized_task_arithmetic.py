"""The family of TIES, DARE, DELLA and Breadcrumbs with a mask of the test's own: sums, signs and factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.elementwise.generalized_task_arithmetic import (
    CombineParameters,
    GeneralizedTaskArithmetic,
    SparseExpert,
)

Make = Callable[..., Any]


class _Expert(SparseExpert):
    weight: float = 1.0


class KeepLarge(GeneralizedTaskArithmetic[CombineParameters, _Expert]):
    """Keep entries of magnitude 1 and more."""

    name = "keep_large"
    summary = "Keep entries of magnitude 1 and more"
    source = "test"
    elects_signs = False
    Parameters = CombineParameters
    Expert = _Expert

    def keep(self, delta: torch.Tensor, expert: _Expert, generator: torch.Generator) -> torch.Tensor | None:
        return None if expert.density == 1 else delta.reshape(-1).abs() >= 1


class KeepLargeOfOneSign(KeepLarge):
    elects_signs = True


BASE = torch.tensor([10.0, 10.0, 10.0, 10.0])
DELTAS = [torch.tensor([2.0, 0.5, -1.0, 0.0]), torch.tensor([1.0, 4.0, 3.0, -1.0])]


def merge(
    make: Make, method: KeepLarge, weights: tuple[float, float] = (1.0, 1.0), density: float = 0.5, **parameters: Any
) -> list[float]:
    inputs = make([BASE + delta for delta in DELTAS], BASE)
    experts = [_Expert(weight=weight, density=density) for weight in weights]
    merged = method.merge(inputs, CombineParameters(**parameters), experts)
    assert inputs.reads == 1  # every expert is read once
    return (merged - BASE).tolist()


def test_plain_sum_of_kept_entries(in_memory_inputs: Make) -> None:
    assert merge(in_memory_inputs, KeepLarge()) == [3.0, 4.0, 2.0, -1.0]
    assert merge(in_memory_inputs, KeepLarge(), density=1.0) == [3.0, 4.5, 2.0, -1.0]
    assert merge(in_memory_inputs, KeepLarge(), (1.0, 0.5)) == [2.5, 2.0, 0.5, -0.5]


def test_normalize_divides_by_the_weights(in_memory_inputs: Make) -> None:
    assert merge(in_memory_inputs, KeepLarge(), (3.0, 1.0), normalize=True) == [1.75, 1.0, 0.0, -0.25]
    assert merge(in_memory_inputs, KeepLarge(), (1.0, -1.0), normalize=True) == [1.0, -4.0, -4.0, 1.0]  # cancel


def test_entries_of_the_elected_sign(in_memory_inputs: Make) -> None:
    assert merge(in_memory_inputs, KeepLargeOfOneSign()) == [3.0, 4.0, 3.0, -1.0]
    # the third entry has the sign of -1 * 4 + 3, and only the first expert's weight takes part there
    assert merge(in_memory_inputs, KeepLargeOfOneSign(), (4.0, 1.0), normalize=True) == pytest.approx(
        [9 / 5, 4, -1, -1]
    )


def test_lambda_and_rescale(in_memory_inputs: Make) -> None:
    assert merge(in_memory_inputs, KeepLarge(), **{"lambda": 0.5}) == [1.5, 2.0, 1.0, -0.5]
    # the first task vector keeps 3 of its L1 norm of 3.5
    rescaled = merge(in_memory_inputs, KeepLarge(), (1.0, 0.0), rescale=True)
    assert rescaled == pytest.approx([2 * 3.5 / 3, 0.0, -3.5 / 3, 0.0])


def test_a_base_is_needed(in_memory_inputs: Make) -> None:
    with pytest.raises(RecipeError, match="keep_large needs a base_model"):
        KeepLarge().merge(in_memory_inputs([BASE]), CombineParameters(), [_Expert()])


def test_signs_and_sorting_need_more_memory() -> None:
    plain, signs = KeepLarge().peak_elements(1000, 2), KeepLargeOfOneSign().peak_elements(1000, 2)
    assert signs == plain + 4 * 1000
