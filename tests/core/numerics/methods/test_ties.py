"""TIES on vectors small enough to follow by hand; numbers of mergekit: test_against_mergekit.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eigenmerge.core.numerics.registry import get_method

Make = Callable[..., Any]


def test_the_majority_sign_is_kept(merge_direct: Make, in_memory_inputs: Make) -> None:
    experts = [torch.tensor([3.0, -2.0, 0.1]), torch.tensor([-1.0, -1.0, 0.2]), torch.tensor([1.0, 4.0, 5.0])]
    # Two of three entries are kept of each expert: (3, -2, 0), (-1, -1, 0), (0, 4, 5). Elected signs: +, +, +.
    merged = merge_direct("ties", in_memory_inputs(experts, torch.zeros(3)), each={"density": 0.67})
    torch.testing.assert_close(merged, torch.tensor([3.0, 4.0, 5.0]))


def test_agreeing_entries_are_averaged_by_weight(merge_direct: Make, in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([torch.tensor([2.0]), torch.tensor([4.0]), torch.tensor([-1.0])], torch.zeros(1))
    each = [{"weight": 3.0}, {"weight": 1.0}, {"weight": 1.0}]
    torch.testing.assert_close(merge_direct("ties", inputs, each), torch.tensor([(3 * 2 + 4) / 4]))
    summed = merge_direct("ties", inputs, each, normalize=False)
    torch.testing.assert_close(summed, torch.tensor([3.0 * 2 + 4]))


def test_lambda_is_accepted_as_in_a_recipe() -> None:
    parameters = get_method("ties").Parameters
    assert parameters(**{"lambda": 0.5}).model_dump(by_alias=True)["lambda"] == 0.5
    assert parameters(lambda_=0.5) == parameters(**{"lambda": 0.5})  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValidationError):
        get_method("ties").Expert(density=1.2)  # pyright: ignore[reportCallIssue]
