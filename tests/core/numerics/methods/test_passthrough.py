"""Passthrough: the tensor of one model, unchanged or scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., Any]


def test_every_bit_is_kept(merge_direct: Make, in_memory_inputs: Make) -> None:
    tensor = torch.tensor([0.1, -0.0, 1e-45, 3e38])
    merged = merge_direct("passthrough", in_memory_inputs([tensor]))
    assert torch.equal(merged.view(torch.int32), tensor.view(torch.int32))


def test_scale(merge_direct: Make, in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([torch.tensor([1.0, -2.0])])
    assert torch.equal(merge_direct("passthrough", inputs, {"scale": 0.5}), torch.tensor([0.5, -1.0]))
