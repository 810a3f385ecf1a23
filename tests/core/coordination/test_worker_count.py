"""Number of workers: as requested, limited by shards and memory; by default one per core or GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eigenmerge.core.coordination.worker_count import available_cores, choose_worker_count
from eigenmerge.core.errors import RecipeError

from ..cache.examples import norm, plan, shard

PLAN = plan(*(replace(shard(index, norm(f"n{index}")), peak_bytes=100 + index) for index in range(8)))


@pytest.mark.parametrize(
    ("requested", "max_memory", "expected"),
    [(3, None, 3), (20, None, 8), (5, 107 * 4, 4), (5, 107 * 9, 5), (5, 50, 1)],
)
def test_requested_workers(requested: int, max_memory: int | None, expected: int) -> None:
    assert choose_worker_count(PLAN, requested, max_memory, "cpu") == expected


def test_less_than_one_worker_is_refused() -> None:
    with pytest.raises(RecipeError, match="--workers 0: expected at least 1"):
        choose_worker_count(PLAN, 0, None, "cpu")


def test_one_worker_per_core_by_default() -> None:
    assert choose_worker_count(PLAN, None, None, "cpu") == min(8, available_cores())
    assert choose_worker_count(PLAN, None, 107, "cpu") == 1


def test_one_worker_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_worker_count(PLAN, None, None, "cuda") == 2
    assert choose_worker_count(PLAN, None, None, "cuda:1") == 1
    assert choose_worker_count(PLAN, 4, None, "cuda") == 4, "workers then wait for a free GPU"


def test_a_machine_without_a_gpu_still_has_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_worker_count(PLAN, None, None, "cuda") == 1


def test_a_plan_without_shards() -> None:
    assert choose_worker_count(plan(), 4, 10, "cpu") == 1
