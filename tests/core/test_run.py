"""What a worker gets of a run."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from eigenmerge.core.planning.plan import RunSettings
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.run import Run
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.storage.store import Store

OPTIONS = {"s3": {"key": "PLANTEDACCESSKEY", "secret": "planted-secret-that-must-not-leak"}}


@pytest.fixture
def run(models: Any, tmp_path: Any) -> Run:
    plan = make_plan(recipe_from_mapping(models.recipe("swudi_a", output={"max_shard_size": "40KB"})))
    return Run(plan, Store(str(tmp_path / "store")), OPTIONS)


def test_a_job_arrives_in_another_process_as_it_was(run: Run) -> None:
    assert len(run.plan.shards) > 1
    for shard, job in zip(run.plan.shards, run.jobs(), strict=True):
        sent = pickle.loads(pickle.dumps(job))
        assert (sent.shard, sent.settings, sent.store, sent.storage_options) == (
            shard,
            run.plan.settings,
            run.store,
            OPTIONS,
        )
        assert sent.label == job.label == f"{shard.index:05d} {shard.name}"


def test_jobs_of_some_shards(run: Run) -> None:
    last = run.plan.shards[-1]
    assert [job.shard for job in run.jobs([last])] == [last]


def test_prefect_sees_no_fields_of_a_job(run: Run) -> None:
    """Else it would visit each of hundreds of tensors of every task, and find the storage options."""
    from prefect.utilities.collections import visit_collection

    visited: list[object] = []
    visit_collection({"job": run.jobs()[0]}, visit_fn=visited.append, return_data=False)
    assert not any(isinstance(one, RunSettings) for one in visited)
    assert not any(one == OPTIONS or one == OPTIONS["s3"] for one in visited)


def test_representations_show_no_credentials(run: Run) -> None:
    for shown in (repr(run), repr(run.jobs()[0])):
        assert "planted-secret" not in shown and "PLANTEDACCESSKEY" not in shown
