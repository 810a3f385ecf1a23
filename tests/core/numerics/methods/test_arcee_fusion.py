"""Arcee Fusion: only entries of outstanding importance are replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_only_the_largest_change_is_taken(merge_direct: Make, in_memory_inputs: Make) -> None:
    base = torch.zeros(2, 8)
    other = base + 0.001 * torch.arange(16.0).reshape(2, 8)
    other[1, 3] = 2.0
    merged = merge_direct("arcee_fusion", in_memory_inputs([other], base))
    assert merged[1, 3] == 2.0
    # Importance is the change times the divergence of the row, so nothing of the other row is important.
    assert torch.equal(merged[0], base[0])


def test_equal_models(merge_direct: Make, in_memory_inputs: Make) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(merge_direct("arcee_fusion", in_memory_inputs([base.clone()], base)), base)


def test_small_changes_are_chosen_by_their_size_and_not_by_rounding(merge_direct: Make, in_memory_inputs: Make) -> None:
    """A change of 1e-4 changes the softmax of a row by less than the rounding of float32."""
    base = 0.02 * torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    other = base + 1e-4 * torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    chosen = [
        merge_direct("arcee_fusion", in_memory_inputs([other.to(dtype)], base.to(dtype))) != base
        for dtype in (torch.float32, torch.float64)
    ]
    assert (chosen[0] ^ chosen[1]).sum() <= 0.02 * chosen[1].sum()
