"""How many experts are read ahead, and the memory that the plan counts for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eigenmerge.core.listing import LoraSource, TensorSource
from eigenmerge.core.planning.cost.experts_ahead import experts_ahead, plan_experts_ahead
from eigenmerge.core.planning.plan import ExpertTensor, TensorPlan

MB = 2**20


def full(num_bytes: int, place: str = "s3://bucket") -> ExpertTensor:
    return ExpertTensor(0, TensorSource(f"{place}/w", 0, num_bytes, "BF16", (num_bytes // 2,)))


def adapter(num_bytes: int) -> ExpertTensor:
    factor = TensorSource("s3://bucket/a", 0, num_bytes, "BF16", (num_bytes // 32, 16))
    return ExpertTensor(0, None, LoraSource(factor, replace(factor, start=num_bytes, stop=2 * num_bytes), 1.0))


def tensor(experts: list[ExpertTensor]) -> TensorPlan:
    return TensorPlan("w", (4, 4), "BF16", "merge", "2-D weight", None, tuple(experts), peak_bytes=1000)


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        ([full(64 * MB)] * 8, 1),
        ([full(8 * MB)] * 8, 4),
        ([full(MB // 8)] * 8, 24),
        ([full(MB // 8, "/models")] * 8, 1),
        ([full(MB // 8, "file:///models")] * 8, 1),
        ([adapter(MB)] * 8, 16),
        ([adapter(MB // 8), full(16 * MB)], 2),
        ([], 1),
    ],
)
def test_small_experts_of_a_remote_store_are_read_ahead(experts: list[ExpertTensor], expected: int) -> None:
    assert experts_ahead(experts) == expected


def test_the_peak_counts_the_experts_beyond_the_next_one() -> None:
    assert plan_experts_ahead(tensor([full(8 * MB)] * 8)).peak_bytes == 1000 + 3 * 8 * MB
    assert plan_experts_ahead(tensor([full(8 * MB)] * 3)).peak_bytes == 1000 + 8 * MB  # two besides the one in use
    assert plan_experts_ahead(tensor([full(8 * MB)])).peak_bytes == 1000
    assert plan_experts_ahead(tensor([full(8 * MB, "/models")] * 8)).peak_bytes == 1000
    assert plan_experts_ahead(replace(tensor([full(8 * MB)] * 8), in_blocks=True)).peak_bytes == 1000
