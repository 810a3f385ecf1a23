"""Names, tags and artifacts of a run on the Prefect server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.steps.head_start import head_start
from eigenmerge.core.steps.open_run import prepare_run
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.flows.merge_with_reports import merge_with_reports
from eigenmerge.flows.run_context import RunContext


def test_name_tags_and_artifacts_of_a_run(models: Any, merge_flow: Any, prefect_server: str, tmp_path: Path) -> None:
    result = merge_flow(models.write_recipe("swudi_a"), tmp_path / "out", store=str(tmp_path / "store"))
    run = {"tags": {"all_": ["eigenmerge", "swudi_a", f"run:{result.run_key[:12]}"]}}
    (found,) = httpx.post(f"{prefect_server}/flow_runs/filter", json={"flow_runs": run}).json()
    assert found["name"] == "swudi_a: 3 experts on base"
    query = {"artifacts": {"flow_run_id": {"any_": [found["id"]]}}}
    artifacts = {one["key"]: one for one in httpx.post(f"{prefect_server}/artifacts/filter", json=query).json()}
    assert set(artifacts) == {"shards", "layers", "result", "report", "report-page"}
    assert artifacts["shards"]["data"] == 100.0
    assert (
        "decompositions computed" in artifacts["result"]["data"]
        and str(tmp_path / "out") in artifacts["result"]["data"]
    )
    assert artifacts["layers"]["data"].count("model.layers.0") == 9
    page = (tmp_path / "out" / "eigenmerge_report.html").as_uri()
    assert artifacts["report-page"]["data"] == f"[eigenmerge_report.html]({page})"
    report = artifacts["report"]["data"].splitlines()
    experts = [line.split(" | ") for line in report if line.startswith("| ") and "expert" in line]
    assert [row[0].rpartition("/")[2] for row in experts[1:]] == ["expert0", "expert1", "expert2"]
    assert all(0.0 < float(row[3]) < 1.0 for row in experts[1:])  # interference: better than the base
    assert any(line.startswith("| mlp.up_proj | 3 | ") for line in report)


def test_every_shard_has_a_task_after_a_head_start(
    models: Any, merge_flow: Any, prefect_server: str, tmp_path: Path
) -> None:
    """Shards that were computed while the server started: their tasks return the results."""
    recipe = read_recipe(models.recipe("task_arithmetic"))
    place = str(tmp_path / "out")
    prepared = prepare_run(recipe, place, store=str(tmp_path / "store"), workers=2)
    with head_start(prepared, StopSignal()) as early:
        context = RunContext(early=early)
        result = merge_with_reports(prepared, context, {"recipe": recipe, "destination": place}, "threads")
    assert (result.shards_done, result.shards_reused, result.warnings) == (len(prepared.run.plan.shards), 0, ())
    query = {"flow_runs": {"tags": {"all_": [f"run:{result.run_key[:12]}"]}}}
    (found,) = httpx.post(f"{prefect_server}/flow_runs/filter", json=query).json()
    tasks: list[Any] = []
    deadline = time.monotonic() + 60  # the server records them in the background
    while len(tasks) < result.shards_done and time.monotonic() < deadline:
        query = {"flow_runs": {"id": {"any_": [found["id"]]}}}
        tasks = httpx.post(f"{prefect_server}/task_runs/filter", json=query).json()
        tasks = [task for task in tasks if task["state_type"] == "COMPLETED"]
    assert sorted(task["name"] for task in tasks) == sorted(job.label for job in prepared.run.jobs())
