"""Linear: weighted average of whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_weights_are_normalized_by_default(merge_direct: Make, in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([torch.tensor([2.0]), torch.tensor([6.0])])
    each = [{"weight": 1.0}, {"weight": 3.0}]
    torch.testing.assert_close(merge_direct("linear", inputs, each), torch.tensor([5.0]))
    torch.testing.assert_close(merge_direct("linear", inputs, each, normalize=False), torch.tensor([20.0]))
