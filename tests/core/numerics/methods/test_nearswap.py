"""NearSwap: entries near the base are replaced, the others move by t."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_entries_move_by_t_at_most(merge_direct: Make, in_memory_inputs: Make) -> None:
    base, other = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.05, -3.0, 1.0, 2.0])
    merged = merge_direct("nearswap", in_memory_inputs([other], base), t=0.1)
    torch.testing.assert_close(merged, torch.tensor([0.05, -0.1, 1.0, 1.1]))
