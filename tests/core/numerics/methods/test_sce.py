"""SCE: selection by variance, weights by energy, majority sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_weights_are_energies_and_minority_signs_are_erased(merge_direct: Make, in_memory_inputs: Make) -> None:
    experts = [torch.tensor([3.0, 1.0]), torch.tensor([1.0, -2.0])]
    # Energies 10/2 and 5/2: weights 2/3 and 1/3. Signs of the sums 4 and -1.
    merged = merge_direct("sce", in_memory_inputs(experts, torch.zeros(2)))
    torch.testing.assert_close(merged, torch.tensor([(2 * 3 + 1) / 3, -2.0]))


def test_only_the_most_variable_entries_are_kept(merge_direct: Make, in_memory_inputs: Make) -> None:
    experts = [torch.tensor([5.0, 1.0, 2.0]), torch.tensor([5.0, 1.5, 4.0])]
    # The first entry does not vary; half of the other two is the last.
    merged = merge_direct("sce", in_memory_inputs(experts, torch.zeros(3)), select_topk=0.5)
    assert torch.equal(merged[:2], torch.zeros(2))
    torch.testing.assert_close(merged[2], torch.tensor((4 * 2.0 + 16 * 4.0) / 20))
