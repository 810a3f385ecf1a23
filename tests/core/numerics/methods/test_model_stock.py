"""Model Stock: the base for orthogonal experts, the expert for equal ones, and a shortened mean between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import RecipeError

Make = Callable[..., Any]


def test_orthogonal_experts_give_the_base_and_equal_ones_the_expert(merge_direct: Make, in_memory_inputs: Make) -> None:
    base = torch.randn((2, 4), generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    y = torch.tensor([[0, 0, 3.0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(merge_direct("model_stock", in_memory_inputs([base + x, base + y], base)), base)
    torch.testing.assert_close(merge_direct("model_stock", in_memory_inputs([base + x, base + x], base)), base + x)


def test_ratio_of_two_experts_at_60_degrees(merge_direct: Make, in_memory_inputs: Make) -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.75**0.5])
    # c = 1/2 and N = 2: t = 2 c / (1 + c) = 2/3
    merged = merge_direct("model_stock", in_memory_inputs([x, y], torch.zeros(2)))
    torch.testing.assert_close(merged, 2 / 3 * (x + y) / 2)


def test_filter_wise_ratios_differ_by_row(merge_direct: Make, in_memory_inputs: Make) -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    merged = merge_direct("model_stock", in_memory_inputs([x, y], torch.zeros(2, 2)), filter_wise=True)
    torch.testing.assert_close(merged, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_fewer_than_two_models_are_an_error(merge_direct: Make, in_memory_inputs: Make) -> None:
    with pytest.raises(RecipeError, match="at least 2 models beside the base; found 1"):
        merge_direct("model_stock", in_memory_inputs([torch.ones(3)], torch.zeros(3)))
