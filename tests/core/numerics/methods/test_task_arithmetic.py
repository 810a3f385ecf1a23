"""Task arithmetic and the average: weighted sum and mean of the task vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_weighted_sum(merge_direct: Make, in_memory_inputs: Make) -> None:
    base, experts = torch.tensor([1.0, 1.0]), [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 4.0])]
    merged = merge_direct("task_arithmetic", in_memory_inputs(experts, base), [{"weight": 0.5}, {"weight": 2.0}])
    torch.testing.assert_close(merged, torch.tensor([1.5, 7.0]))


def test_scale_and_lambda_multiply(merge_direct: Make, in_memory_inputs: Make) -> None:
    base, expert = torch.zeros(3), torch.ones(3)
    inputs = in_memory_inputs([expert, expert], base)
    merged = merge_direct("task_arithmetic", inputs, scale=0.5, **{"lambda": 0.3})
    torch.testing.assert_close(merged, torch.full((3,), 0.3))


def test_average_does_not_normalize_weights(merge_direct: Make, in_memory_inputs: Make) -> None:
    base, experts = torch.tensor([1.0]), [torch.tensor([3.0]), torch.tensor([5.0])]
    inputs = in_memory_inputs(experts, base)
    torch.testing.assert_close(merge_direct("average", inputs), torch.tensor([4.0]))
    torch.testing.assert_close(merge_direct("average", inputs, {"weight": 2.0}, scale=0.5), torch.tensor([4.0]))
