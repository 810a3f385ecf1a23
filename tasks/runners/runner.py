"""Where the shards of one run are computed: threads of this process, a Dask cluster, or Ray. The flow is the same."""

from __future__ import annotations

from typing import Any, Literal, Self

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task

from ...core.errors import EigenmergeError, RecipeError, WorkerError

RunnerName = Literal["threads", "dask", "ray"]


class ShardRunner:
    """A Prefect task runner, as it is for threads of this process; clusters override what they do in their own way."""

    # Shards are in this process and stop by themselves. Elsewhere leaving the runner takes back what has not begun; a
    # shard in hand is finished on a cluster that stays, and dropped whole with one that ends.
    sees_stop_signal = True

    def __init__(self, runner: TaskRunner[Any]) -> None:
        self._runner: Any = runner

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._runner.__exit__(*exception)

    def submit(self, task: Task[..., Any], parameters: dict[str, Any], peak_bytes: int) -> PrefectFuture[Any]:
        """Hand a shard over that needs `peak_bytes` of memory."""
        return self._runner.submit(task, parameters=parameters)

    def explain(self, error: Exception) -> EigenmergeError | None:
        """What an error of the runner itself means to a user; None for any other error."""
        return None


def workers_died(who: str) -> WorkerError:
    """What a cluster's own error means when the same shard has killed several workers."""
    return WorkerError(
        f"{who}; most often memory: `eigenmerge plan` says what a shard needs. Finished shards are kept: run the same"
        " command again to resume"
    )


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
        return ShardRunner(ThreadPoolTaskRunner(max_workers=workers))
    try:
        if name == "dask":
            from .dask_runner import DaskRunner

            return DaskRunner(workers, address, device)
        from .ray_runner import RayRunner

        return RayRunner(workers, address, device)
    except ImportError as error:
        raise RecipeError(f"runner {name!r} needs an extra: pip install 'eigenmerge[{name}]'") from error
