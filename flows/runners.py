"""Where the shards of one run are computed: threads of this process, a Dask cluster, or Ray. The flow is the same."""

from __future__ import annotations

import os
from typing import Any, Literal, Protocol, Self

from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from ..core.errors import EigenmergeError, RecipeError

RunnerName = Literal["threads", "dask", "ray"]


class ShardRunner(Protocol):
    """A Prefect task runner, and what each kind does in its own way.

    sees_stop_signal : shards are in this process and stop by themselves. Elsewhere leaving the runner takes back what
        has not begun; a shard in hand is finished on a cluster that stays, and dropped whole with one that ends.
    """

    sees_stop_signal: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: Any) -> None: ...

    def submit(self, task: Task[..., Any], parameters: dict[str, Any], peak_bytes: int) -> PrefectFuture[Any]:
        """Hand a shard over that needs `peak_bytes` of memory."""
        ...

    def explain(self, error: Exception) -> EigenmergeError | None:
        """What an error of the runner itself means to a user; None for any other error."""
        ...


class ThreadRunner:
    """Threads of this process."""

    sees_stop_signal = True

    def __init__(self, workers: int) -> None:
        self._runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._runner.__exit__(*exception)

    def submit(self, task: Task[..., Any], parameters: dict[str, Any], peak_bytes: int) -> PrefectFuture[Any]:
        return self._runner.submit(task, parameters=parameters)

    def explain(self, error: Exception) -> EigenmergeError | None:
        return None


def available_cores() -> int:
    """Cores this process may use (a container's limit, not the machine's size)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_runner(name: RunnerName, *, workers: int, address: str | None = None, device: str = "cpu") -> ShardRunner:
    """A runner with `workers` slots.

    address : scheduler of a running Dask cluster or head of a Ray cluster, which has the slots that it has; a local one
        is started where None
    device : "cuda" makes a shard ask the cluster for one GPU

    Raises
    ------
    RecipeError : the runner's extra is not installed, or it has no use for that address or device
    """
    if name == "threads":
        if address:
            raise RecipeError(
                f"runner 'threads' has no address, found {address!r}; choose dask or ray, or leave it out"
            )
        return ThreadRunner(workers)
    try:
        if name == "dask":
            from .dask_runner import DaskRunner

            return DaskRunner(workers, address, device)
        from .ray_runner import RayRunner

        return RayRunner(workers, address, device)
    except ImportError as error:
        raise RecipeError(f"runner {name!r} needs an extra: pip install 'eigenmerge[{name}]'") from error
