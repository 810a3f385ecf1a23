"""Runs on a Dask cluster: workers with GPUs, cancelled shards, dead workers, and messages about errors."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import task
from prefect.settings import PREFECT_API_URL, temporary_settings

distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")

from eigenmerge.core.errors import RecipeError, WorkerError  # noqa: E402
from eigenmerge.tasks.runners.runner import make_runner  # noqa: E402

from .processes import (  # noqa: E402
    END_SECONDS,
    START_SECONDS,
    last_shard_claimed,
    num_parts,
    running_processes,
    start,
    wait_until,
)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    """A cluster of two workers, one of which is declared to have a GPU."""
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as running:
        spec = running.new_worker_spec()
        for name, worker in enumerate(list(spec.values()) * 2):
            options = {**worker["options"], "resources": {"GPU": 1} if name else {}}
            running.worker_spec[name] = {**worker, "options": options}
        running.sync(running._correct_state)
        yield running


@pytest.fixture
def cluster(two_workers: Any) -> Any:
    """The cluster after both workers have started again; an earlier test may have killed them."""
    with distributed.Client(two_workers) as client:
        client.wait_for_workers(2, timeout=60)
    return two_workers


@pytest.fixture
def reported(prefect_server: str) -> Iterator[str]:
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        yield prefect_server


@task(persist_result=False)
def worker_name() -> Any:
    return distributed.get_worker().name


@task(persist_result=False)
def wait_for(path: str, seconds: float) -> str:
    Path(path).touch()
    time.sleep(seconds)
    return path


@task(persist_result=False)
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_shard_for_a_gpu_runs_on_a_worker_with_one(cluster: Any, reported: str) -> None:
    for device, expected in (("cuda", {1}), ("cpu", {0, 1})):
        with make_runner("dask", workers=2, address=cluster.scheduler_address, device=device) as runner:
            futures = [runner.submit(worker_name, {}, peak_bytes=1) for _ in range(12)]
            assert {future.result() for future in futures} == expected


def test_closing_the_runner_cancels_shards_that_have_not_started(cluster: Any, reported: str, tmp_path: Path) -> None:
    with make_runner("dask", workers=2, address=cluster.scheduler_address) as runner:
        marks = [tmp_path / str(number) for number in range(20)]
        futures = [runner.submit(wait_for, {"path": str(mark), "seconds": 1.0}, peak_bytes=1) for mark in marks]
        while not any(mark.exists() for mark in marks):
            time.sleep(0.01)
        assert len(futures) == 20
    started, before = sum(mark.exists() for mark in marks), -1
    while started != before:
        time.sleep(2.5)
        started, before = sum(mark.exists() for mark in marks), started
    assert started < 20


def test_the_error_explains_that_workers_died(cluster: Any, reported: str) -> None:
    with make_runner("dask", workers=2, address=cluster.scheduler_address) as runner:
        future = runner.submit(die, {}, peak_bytes=1)
        with pytest.raises(Exception) as caught:
            future.result()
        explained = runner.explain(caught.value)
        assert isinstance(explained, WorkerError) and "4 Dask workers died" in str(explained)
        assert runner.explain(ValueError("of a shard")) is None


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the profiler hangs only with Python 3.11")
def test_the_error_explains_that_the_scheduler_ended() -> None:
    from distributed.client import ClosedClientError, FutureCancelledError
    from distributed.comm import CommClosedError

    runner = make_runner("dask", workers=1, address="tcp://127.0.0.1:9")
    lost = FutureCancelledError("shard-1", "scheduler-connection-lost", "Client lost the connection\nto the scheduler")
    for error in (lost, ClosedClientError("Can't send"), CommClosedError("in connection pool")):
        explained = runner.explain(error)
        assert isinstance(explained, WorkerError)
        assert str(explained).startswith(
            "the Dask scheduler at tcp://127.0.0.1:9 ended, or the connection to it was lost"
        )
        assert "run the same command again to resume" in str(explained) and "\n" not in str(explained)
    assert runner.explain(ValueError("of a shard")) is None


def test_the_profiler_is_disabled(cluster: Any, reported: str) -> None:
    def profiles(dask_worker: Any) -> bool:
        return "profile" in dask_worker.periodic_callbacks

    with make_runner("dask", workers=2, address=cluster.scheduler_address), distributed.Client(cluster) as client:
        assert list(client.run(profiles).values()) == [False, False]


def test_a_prefect_server_that_workers_cannot_reach(cluster: Any) -> None:
    runner = make_runner("dask", workers=2, address=cluster.scheduler_address)
    nowhere = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: nowhere}),
        pytest.raises(RecipeError, match=f"Prefect server at {nowhere}"),
    ):
        runner.__enter__()


@pytest.mark.parametrize(("address", "word"), [("nonsense", "no scheduler answers at 'nonsense'")])
def test_a_wrong_address(command: Callable[..., Any], models: Any, tmp_path: Path, address: str, word: str) -> None:
    recipe = models.write_recipe("swudi_a")
    for runner, expected in (("dask", word), ("threads", "runner 'threads' takes no address")):
        done = command("merge", recipe, tmp_path / "out", "--runner", runner, "--runner-address", address)
        assert done.code == 2 and expected in done.err and len(done.err.splitlines()) == 1
        assert not list((tmp_path / "out").glob("*"))


def test_an_error_in_one_shard_stops_the_others(
    make_models: Any, command: Callable[..., Any], cluster: Any, tmp_path: Path
) -> None:
    models = make_models(num_experts=3, layers=16, hidden=256)
    tensors = models.expert_tensors[1]
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    from safetensors.torch import save_file

    save_file(tensors, models.experts[1] / "model.safetensors", {"format": "pt"})
    recipe, store = models.write_recipe("swudi_a"), tmp_path / "store"
    done = command("merge", recipe, tmp_path / "out", "--runner", "dask", "--runner-address", cluster.scheduler_address)
    assert done.code == 1 and "has 1 NaN or Inf" in done.err and len(done.err.splitlines()) == 1
    parts = num_parts(store)
    time.sleep(2.0)
    assert num_parts(store) <= parts + 2 < 24  # running shards may finish
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_is_resumed(
    make_models: Any,
    pipeline: Callable[..., Any],
    prefect_server: str,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """On a cluster that the command starts. Ctrl-C reaches the workers too, as in a terminal."""
    recipe = make_models(num_experts=3, layers=4, hidden=192).write_recipe("swudi_a")
    store, out = tmp_path / "store", tmp_path / "out"
    arguments = ["merge", recipe, out, "--store", store, "--runner", "dask", "--workers", "2"]
    with last_shard_claimed(recipe, store):
        process = start(arguments, prefect_server, start_new_session=True)
        wait_until(lambda: num_parts(store) >= 2, START_SECONDS, process)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 130, errors
    assert len(errors.strip().splitlines()) == 2, errors  # no messages of Dask
    first, last = errors.strip().splitlines()
    assert first == "eigenmerge: stopping; finished shards are kept (interrupt again to stop at once)"
    assert last.startswith(f"eigenmerge: error: stopped by {number.name}")
    deadline = time.monotonic() + 60
    while workers := running_processes(process.pid):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
    assert not list(out.glob("*")) and not list(store.rglob("*.partial"))

    finished = num_parts(store)
    assert finished >= 2
    if number == signal.SIGTERM:
        return
    again = pipeline(recipe, out, store=store)  # test_dask.py resumes on Dask
    assert again.shards_reused == finished and again.shards_done > 0
    pipeline(recipe, tmp_path / "threads", store=str(tmp_path / "other"))
    for name in ("model.safetensors", "eigenmerge_manifest.json"):
        assert (out / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()
