"""Shards that are computed before the run begins: taken once, with the same result, and no more after the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.coordination.stop import StopSignal
from eigenmerge.core.steps import head_start as module
from eigenmerge.core.steps.head_start import HeadStart, head_start
from eigenmerge.core.steps.merge_run import run_in_threads
from eigenmerge.core.steps.merge_shard import merge_shard
from eigenmerge.core.steps.open_run import PreparedRun, prepare_run
from eigenmerge.core.steps.read_recipe import read_recipe


@pytest.fixture
def prepare(make_models: Callable[..., Any], tmp_path: Path) -> Callable[..., PreparedRun]:
    models = make_models(num_experts=2, layers=2)

    def make(name: str, method: str = "task_arithmetic", **keys: Any) -> PreparedRun:
        recipe = read_recipe(models.recipe(method, **keys))
        return prepare_run(recipe, str(tmp_path / name), store=str(tmp_path / f"{name}-store"), workers=2)

    return make


def test_a_run_takes_what_was_computed(prepare: Callable[..., PreparedRun], tmp_path: Path) -> None:
    prepared, plain = prepare("out"), prepare("plain")
    with head_start(prepared, StopSignal()) as early:
        assert early is not None
        for future in early._shards.values():
            future.result()
        result = run_in_threads(prepared, early=early)
    total = len(prepared.run.plan.shards)
    assert (result.shards_done, result.shards_reused) == (total, 0)
    run_in_threads(plain)
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "out-store").glob("claims/*"))


def test_a_shard_is_taken_once_and_none_is_begun_after_the_end(
    prepare: Callable[..., PreparedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(job: Any, **options: Any) -> Any:
        begun.release()
        go_on.wait()
        return merge_shard(job, **options)

    monkeypatch.setattr(module, "merge_shard", slow)
    prepared = prepare("out")
    with ThreadPoolExecutor(2) as pool:
        early = HeadStart(prepared, pool, StopSignal())
        begun.acquire()
        begun.acquire()
        early.end()
        go_on.set()
        taken = [early.take(job) for job in prepared.run.jobs()]
    assert sum(report is not None for report in taken) == 2
    assert not begun.acquire(blocking=False)
    assert [early.take(job) for job in prepared.run.jobs()] == [None] * len(taken)


def test_a_failed_shard_is_left_to_the_run(
    prepare: Callable[..., PreparedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: Any, **options: Any) -> Any:
        raise OSError("once")

    prepared = prepare("out")
    monkeypatch.setattr(module, "merge_shard", fail)
    with head_start(prepared, StopSignal()) as early:
        assert early is not None
        monkeypatch.undo()
        assert run_in_threads(prepared, early=early).shards_done == len(prepared.run.plan.shards)


def test_nothing_is_begun_where_layers_depend_on_each_other_or_all_is_done(
    prepare: Callable[..., PreparedRun],
) -> None:
    with head_start(prepare("aligned", "swudi", parameters={"alignment_rho": 0.5}), StopSignal()) as early:
        assert early is None
    run_in_threads(prepare("out"))
    with head_start(prepare("out"), StopSignal()) as early:
        assert early is None


def test_a_stopped_run_begins_nothing(prepare: Callable[..., PreparedRun], tmp_path: Path) -> None:
    stop = StopSignal()
    stop.stop("a test")
    prepared = prepare("out")
    with head_start(prepared, stop) as early:
        assert early is not None
        assert [early.take(job) for job in prepared.run.jobs()] == [None] * len(prepared.run.plan.shards)
    assert not list((tmp_path / "out-store").glob("parts/*"))
