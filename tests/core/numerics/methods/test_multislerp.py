"""Multi-SLERP: mean direction at mean norm, and vectors that cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import RecipeError

Make = Callable[..., Any]


def test_mean_direction_at_mean_norm(merge_direct: Make, in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])])
    merged = merge_direct("multislerp", inputs)
    torch.testing.assert_close(merged, torch.tensor([2.0, 2.0]) / 2**0.5)


def test_directions_that_cancel(merge_direct: Make, in_memory_inputs: Make) -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    with pytest.raises(RecipeError, match="4 weighted directions cancel"):
        merge_direct("multislerp", in_memory_inputs([x, y, -x, -y]))
    assert torch.equal(merge_direct("multislerp", in_memory_inputs([x, -x])), torch.zeros(2))
