"""The flow on a real Dask cluster of two worker processes, one of which is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .processes import num_parts

distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as running:
        yield running


def test_dask_gives_the_same_bytes(models: Any, merge_flow: Any, pipeline: Any, cluster: Any, tmp_path: Path) -> None:
    recipe = models.write_recipe("swudi_a")
    pipeline(recipe, tmp_path / "threads", store=str(tmp_path / "a"))
    result = merge_flow(
        recipe,
        tmp_path / "dask",
        store=str(tmp_path / "b"),
        runner="dask",
        runner_address=cluster.scheduler_address,
        workers=2,
    )
    assert result.decompositions_computed == 21
    for name in ("model.safetensors", "eigenmerge_manifest.json"):
        assert (tmp_path / "threads" / name).read_bytes() == (tmp_path / "dask" / name).read_bytes()


def test_after_a_killed_worker_its_shard_is_computed_again(
    make_models: Any, merge_flow: Any, pipeline: Any, cluster: Any, tmp_path: Path
) -> None:
    models = make_models(num_experts=3, layers=4, hidden=256)
    recipe, store = models.write_recipe("swudi_a"), tmp_path / "store"
    killed: list[int] = []

    def kill_one_worker() -> None:
        deadline = time.monotonic() + 200
        while num_parts(store) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        worker = next(iter(cluster.workers.values()))
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    result = merge_flow(
        recipe,
        tmp_path / "killed",
        store=str(store),
        runner="dask",
        runner_address=cluster.scheduler_address,
        workers=2,
    )
    killer.join()
    assert killed
    reference = pipeline(recipe, tmp_path / "reference", store=str(tmp_path / "other"))
    assert reference.decompositions_computed <= result.decompositions_computed + result.decompositions_reused
    for name in ("model.safetensors", "eigenmerge_manifest.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()
