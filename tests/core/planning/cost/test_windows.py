"""Windows of remote sources: whole elements, within the memory that the plan counts."""

from __future__ import annotations

import pytest

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.planning.cost.block_projection import window_bytes
from eigenmerge.core.planning.plan import ExpertTensor, TensorPlan


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4, 6, 8, 10, 30, 100])
def test_no_window_ends_inside_an_element(num_experts: int) -> None:
    shape = (8192, 8192)
    base, *experts = (TensorSource(f"s3://b/{i}", 0, 2 * 8192**2, "BF16", shape) for i in range(num_experts + 1))
    entries = tuple(ExpertTensor(index, source) for index, source in enumerate(experts))
    tensor = TensorPlan("w", shape, "BF16", "merge", "2-D weight", base, entries, method="linear")
    size = window_bytes(tensor, base)
    assert size % 8 == 0 and 4 * 2**20 <= size <= 32 * 2**20
    assert size == 4 * 2**20 or 2 * (num_experts + 1) * size <= 256 * 2**20
