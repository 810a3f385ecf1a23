"""A sweep as a Prefect flow: one task for each shard that is decomposed, and one for each candidate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import eigenmerge

from ..small_models import Models


@pytest.mark.slow
def test_candidates_are_task_runs(make_models: Callable[..., Models], merge_flow: Any, prefect_server: str) -> None:
    from prefect.client.orchestration import get_client

    models = make_models(layers=1)

    def norm(candidate: eigenmerge.Candidate) -> float:
        return float(candidate["model.layers.0.self_attn.q_proj.weight"].norm())

    grid = {"exp_time": [1, 30], "rank_ratio": [0.5, 0.9]}
    options: dict[str, Any] = {"store": models.root / "store", "key": "norm", "parallel": 2}
    found = eigenmerge.sweep(models.recipe("swudi"), grid, norm, **options)
    assert found.outcome.num_scored == 4 and not found.outcome.warnings
    with get_client(sync_client=True) as client:
        flows = [run for run in client.read_flow_runs() if run.name == "sweep swudi"]
        assert [run.state_name for run in flows] == ["Completed"]
        tasks = [run for run in client.read_task_runs() if run.flow_run_id == flows[0].id]
    names = sorted(run.name for run in tasks)
    assert names[0].startswith("decompose ")
    assert [name for name in names if name.startswith("exp_time")] == [
        "exp_time=1, rank_ratio=0.5", "exp_time=1, rank_ratio=0.9",
        "exp_time=30, rank_ratio=0.5", "exp_time=30, rank_ratio=0.9",
    ]  # fmt: skip
    plain = eigenmerge.sweep(models.recipe("swudi"), grid, norm, **{**options, "key": "other"}, use_prefect=False)
    assert plain.table.column("norm").equals(found.table.column("norm"))
