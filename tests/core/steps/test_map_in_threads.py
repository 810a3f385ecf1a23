"""Shards in threads: the same reports in the same order as one after the other, and one error ends the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.coordination.claims import ClaimedElsewhere
from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.errors import InterruptedRunError, NonFiniteError, RecipeError
from eigenmerge.core.run import ShardJob
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.map_in_threads import map_in_threads
from eigenmerge.core.steps.merge_run import run_in_threads
from eigenmerge.core.steps.open_run import open_run, prepare_run
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.core.storage.store import Store


@pytest.fixture
def jobs(make_models: Callable[..., Any], tmp_path: Path) -> list[ShardJob]:
    recipe = read_recipe(make_models(num_experts=2, layers=3).recipe("task_arithmetic"))
    return open_run(make_plan(recipe), Store(str(tmp_path / "store")), None).jobs()


def test_reports_have_the_order_of_the_jobs(jobs: list[ShardJob]) -> None:
    seen: list[int] = []

    def step(job: ShardJob, **_: Any) -> int:
        return job.shard.index

    found = map_in_threads(step, jobs, workers=3, stop=StopSignal(), on_report=seen.append)
    assert found == [job.shard.index for job in jobs] and sorted(seen) == sorted(found)
    assert len(found) > 2
    assert map_in_threads(step, [], workers=3, stop=StopSignal()) == []


def test_a_claimed_shard_is_tried_again_at_the_end(jobs: list[ShardJob]) -> None:
    calls: list[tuple[int, bool]] = []

    def step(job: ShardJob, *, wait: bool, **_: Any) -> int:
        calls.append((job.shard.index, wait))
        if job is jobs[0] and not wait:
            raise ClaimedElsewhere
        return job.shard.index

    map_in_threads(step, jobs, workers=2, stop=StopSignal())
    assert calls[-1] == (jobs[0].shard.index, True) and len(calls) == len(jobs) + 1


def test_an_error_stops_the_shards_and_not_the_signal_of_the_run(jobs: list[ShardJob]) -> None:
    stop, done = StopSignal(), 0

    def step(job: ShardJob, *, stop: StopSignal, **_: Any) -> int:
        nonlocal done
        stop.check()
        done += 1
        raise NonFiniteError("one bad expert")

    with pytest.raises(NonFiniteError, match="one bad expert"):
        map_in_threads(step, jobs, workers=1, stop=stop)
    assert done == 1 and not stop.is_set, "a run without this expert may follow"
    stop.stop("SIGTERM")
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        map_in_threads(step, jobs, workers=1, stop=stop)
    assert done == 1


def test_the_bytes_are_those_of_one_worker(
    make_models: Callable[..., Any], pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = read_recipe(make_models(num_experts=2, layers=2).recipe("swudi_a"))
    pipeline(recipe, tmp_path / "in-turn", store=tmp_path / "store-1")
    prepared = prepare_run(recipe, str(tmp_path / "threads"), store=str(tmp_path / "store-2"), workers=3)
    run_in_threads(prepared)
    for path in (tmp_path / "in-turn").iterdir():
        assert (tmp_path / "threads" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(RecipeError, match="runner 'dask' works through a Prefect server"):
        run_in_threads(prepared, runner="dask")
