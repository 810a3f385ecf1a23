"""Model Breadcrumbs: outliers and small entries are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_the_middle_entries_are_kept(merge_direct: Make, in_memory_inputs: Make) -> None:
    expert = torch.tensor([10.0, -5.0, 3.0, -2.0, 1.0])
    inputs = in_memory_inputs([expert], torch.zeros(5))
    each = {"density": 0.4, "gamma": 0.2}  # of five entries the largest is dropped and the next two are kept
    torch.testing.assert_close(merge_direct("breadcrumbs", inputs, each), torch.tensor([0.0, -5.0, 3.0, 0.0, 0.0]))


def test_signs_are_elected(merge_direct: Make, in_memory_inputs: Make) -> None:
    experts = [torch.tensor([4.0, 1.0]), torch.tensor([-1.0, 2.0])]
    inputs = in_memory_inputs(experts, torch.zeros(2))
    each = {"density": 1.0, "gamma": 0.0}
    torch.testing.assert_close(merge_direct("breadcrumbs", inputs, each), torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(merge_direct("breadcrumbs_ties", inputs, each), torch.tensor([4.0, 3.0]))
