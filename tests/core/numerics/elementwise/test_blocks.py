"""Sums over blocks: every entry once, in float64."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.elementwise.blocks import (
    absolute_sum,
    block_elements,
    blocks,
    blockwise_norm,
    inner_product,
)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_blocks_cover_every_entry_once(extra: int) -> None:
    count = 2 * block_elements(torch.device("cpu")) + extra
    covered = [index for span in blocks(torch.empty(count)) for index in (span.start, span.stop)]
    assert covered[0] == 0
    assert covered[-1] == count
    assert covered[1:-1:2] == covered[2::2]


def test_sums_are_taken_in_float64() -> None:
    # 2^24 + 1 is no float32: sums in float32 would stop at 2^24
    ones = torch.ones(2**24 + 3)
    assert inner_product(ones, ones) == 2**24 + 3
    assert absolute_sum(-ones) == 2**24 + 3
    assert blockwise_norm(torch.full((4,), 1e30)) == pytest.approx(2e30, rel=torch.finfo(torch.float32).eps)


def test_sums_of_no_entries_and_of_a_selection() -> None:
    assert blockwise_norm(torch.empty(0, 3)) == 0.0
    keep = torch.tensor([True, False, True])
    assert absolute_sum(torch.tensor([-1.0, 5.0, 2.0]), keep) == 3.0
