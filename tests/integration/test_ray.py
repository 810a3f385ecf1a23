"""The flow on a local Ray cluster. Ray is an extra of 440 MB: `make ray` installs it and runs these tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import task
from prefect.settings import PREFECT_API_URL, temporary_settings

from eigenmerge.core.errors import RecipeError, WorkerError
from eigenmerge.tasks.runners.runner import make_runner

ray = pytest.importorskip("ray", reason="the ray extra is not installed; `make ray` installs it")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(models: Any, merge_flow: Any, tmp_path: Path) -> None:
    recipe = models.write_recipe("swudi_a")
    merge_flow(recipe, tmp_path / "threads", store=str(tmp_path / "a"))
    result = merge_flow(recipe, tmp_path / "ray", store=str(tmp_path / "b"), runner="ray", workers=2)
    assert result.decompositions_computed == 21
    for name in ("model.safetensors", "eigenmerge_manifest.json"):
        assert (tmp_path / "threads" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


@pytest.fixture
def two_gpus() -> Iterator[Any]:
    """A local instance that is declared to have two GPUs."""
    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@task(persist_result=False)
def visible_gpus(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


@task(persist_result=False)
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_each_shard_gets_its_own_gpu(prefect_server: str, two_gpus: Any) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_server}), make_runner("ray", workers=4, device="cuda") as runner:
        futures = [runner.submit(visible_gpus, {"seconds": 1.0}, peak_bytes=1) for _ in range(4)]
        assert {future.result() for future in futures} == {"0", "1"}


@pytest.mark.slow
def test_the_error_explains_that_workers_died(prefect_server: str) -> None:
    with temporary_settings({PREFECT_API_URL: prefect_server}), make_runner("ray", workers=2) as runner:
        more_than_there_is = 10**15
        assert runner.submit(visible_gpus, {"seconds": 0.0}, peak_bytes=more_than_there_is).result() == ""
        future = runner.submit(die, {}, peak_bytes=1)
        with pytest.raises(Exception) as caught:
            future.result()
        assert isinstance(runner.explain(caught.value), WorkerError)
        assert runner.explain(ValueError("of a shard")) is None


@pytest.mark.slow
def test_a_numbered_gpu_is_refused() -> None:
    with pytest.raises(RecipeError, match="gives each shard a GPU itself"):
        make_runner("ray", workers=1, device="cuda:1")
