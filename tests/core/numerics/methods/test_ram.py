"""RAM and RAM+: averages over the experts that changed an entry, and enlarged unique entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


BASE = torch.zeros(4)
EXPERTS = [torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([3.0, 0.0, 4.0, 0.0])]


def test_entries_are_averaged_over_the_experts_that_changed_them(merge_direct: Make, in_memory_inputs: Make) -> None:
    merged = merge_direct("ram", in_memory_inputs(EXPERTS, BASE))
    torch.testing.assert_close(merged, torch.tensor([2.0, 2.0, 4.0, 0.0]))
    merged = merge_direct("ram", in_memory_inputs(EXPERTS, BASE), epsilon=1.5)  # 1.0 does not count as changed
    torch.testing.assert_close(merged, torch.tensor([3.0, 2.0, 4.0, 0.0]))


def test_unique_entries_grow_with_the_overlap(merge_direct: Make, in_memory_inputs: Make) -> None:
    # Each expert has one shared and one unique entry: ratio 1, limited to alpha.
    merged = merge_direct("ramplus_tl", in_memory_inputs(EXPERTS, BASE), r=0.5, alpha=0.4)
    torch.testing.assert_close(merged, torch.tensor([2.0, 2.0 * 1.2, 4.0 * 1.2, 0.0]))
