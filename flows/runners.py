"""Where the shards of one run are computed: threads of this process, a Dask cluster, or Ray. The flow is the same."""

from __future__ import annotations

import os
from typing import Any, Literal

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from ..core.errors import RecipeError

RunnerName = Literal["threads", "dask", "ray"]


def available_cores() -> int:
    """Cores this process may use (a container's limit, not the machine's size)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_runner(name: RunnerName, *, workers: int, address: str | None = None, device: str = "cpu") -> TaskRunner[Any]:
    """A Prefect task runner with `workers` slots.

    address : scheduler of a running Dask cluster or head of a Ray cluster; a local one is started where None
    device : "cuda" makes a Ray task ask for one GPU; Dask workers are started with one GPU each by their operator

    Raises
    ------
    RecipeError : the runner's extra is not installed
    """
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    if name == "dask":
        return _dask(workers, address)
    return _ray(workers, address)


def _dask(workers: int, address: str | None) -> TaskRunner[Any]:
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise RecipeError("runner 'dask' needs an extra: pip install 'eigenmerge[dask]'") from error
    if address:
        return DaskTaskRunner(address=address)
    return DaskTaskRunner(
        cluster_kwargs={
            "n_workers": workers,
            "threads_per_worker": 1,  # one shard at a time: its peak memory is what the plan projected
            "dashboard_address": None,
            "env": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        }
    )


def _ray(workers: int, address: str | None) -> TaskRunner[Any]:
    try:
        from prefect_ray import RayTaskRunner  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError("runner 'ray' needs an extra: pip install 'eigenmerge[ray]'") from error
    return RayTaskRunner(address=address, init_kwargs=None if address else {"num_cpus": workers})
