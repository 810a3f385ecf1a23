"""A sweep as a Prefect flow: one task for each shard that is decomposed, and one for each candidate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import eigenmerge

from ..small_models import Models


def sweeps(server: str) -> dict[str, str]:
    """Return the states of all runs of the flow by id: other tests of the session report to the same server."""
    query = {"flow_runs": {"name": {"any_": ["sweep swudi"]}}}
    found = httpx.post(f"{server}/flow_runs/filter", json=query).json()
    return {run["id"]: run["state_name"] for run in found}


def completed_tasks(server: str, flow_run: str, count: int) -> list[str]:
    """Return the names of the completed tasks of a flow run, sorted, once there are `count` of them."""
    query = {"flow_runs": {"id": {"any_": [flow_run]}}}
    deadline = time.monotonic() + 120  # the server records them in the background
    while True:
        tasks = httpx.post(f"{server}/task_runs/filter", json=query).json()
        names = sorted(task["name"] for task in tasks if task["state_name"] == "Completed")
        if len(names) >= count or time.monotonic() > deadline:
            return names
        time.sleep(0.1)


@pytest.mark.slow
def test_candidates_are_task_runs(make_models: Callable[..., Models], merge_flow: Any, prefect_server: str) -> None:
    models = make_models(layers=1)

    def norm(candidate: eigenmerge.Candidate) -> float:
        return float(candidate["model.layers.0.self_attn.q_proj.weight"].norm())

    grid = {"exp_time": [1, 30], "rank_ratio": [0.5, 0.9]}
    options: dict[str, Any] = {"store": models.root / "store", "key": "norm", "parallel": 2}
    earlier = sweeps(prefect_server)
    found = eigenmerge.sweep(models.recipe("swudi"), grid, norm, **options)
    assert found.outcome.num_scored == 4 and not found.outcome.warnings
    ((flow_run, state),) = sweeps(prefect_server).items() - earlier.items()
    assert state == "Completed"
    names = completed_tasks(prefect_server, flow_run, 8)
    assert [name for name in names if name.startswith("exp_time")] == [
        "exp_time=1, rank_ratio=0.5", "exp_time=1, rank_ratio=0.9",
        "exp_time=30, rank_ratio=0.5", "exp_time=30, rank_ratio=0.9",
    ]  # fmt: skip
    assert len(names) == 8 and all(name.startswith("decompose ") for name in names[:4])
    plain = eigenmerge.sweep(models.recipe("swudi"), grid, norm, **{**options, "key": "other"}, use_prefect=False)
    assert plain.table.column("norm").equals(found.table.column("norm"))
