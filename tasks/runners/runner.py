"""Choose where the shards of a run are computed: threads of this process, a Dask cluster, or Ray."""

from __future__ import annotations

from typing import Any, Self

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task

from ...core.choices import RunnerName
from ...core.coordination.stop import StopSignal
from ...core.errors import EigenmergeError, RecipeError, WorkerError


class ShardRunner:
    """A Prefect task runner for shards. This base class serves threads of this process; clusters override methods.

    sees_stop_signal : whether shards check the stop signal of the run themselves, which they can in this process only.
        Otherwise leaving the runner cancels the shards that have not started; a shard in progress is finished on a
        cluster that was given by its address, and discarded with a local one
    """

    sees_stop_signal = True

    def __init__(self, runner: TaskRunner[Any]) -> None:
        self._runner: Any = runner

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._runner.__exit__(*exception)

    def submit(self, task: Task[..., Any], parameters: dict[str, Any], peak_bytes: int) -> PrefectFuture[Any]:
        """Submit the task of a shard that needs `peak_bytes` of memory."""
        return self._runner.submit(task, parameters=parameters)

    def result(self, future: PrefectFuture[Any], stop: StopSignal) -> Any:
        """Return the result of a task that is done, or raise its error.

        Raises
        ------
        InterruptedRunError : `stop` was set before the result arrived
        WorkerError : as `check`
        """
        return future.result()

    def check(self) -> None:
        """Raise a WorkerError if the submitted shards will not be computed; called while they are awaited."""

    def explain(self, error: Exception) -> EigenmergeError | None:
        """Return an error that users understand for an error of the runner itself; None for any other error."""
        return None


def workers_died_error(who: str) -> WorkerError:
    """Return the error for a shard on which several workers of a cluster died."""
    return WorkerError(
        f"{who}; the most frequent cause is too little memory: `eigenmerge plan` shows what a shard needs. Finished"
        " shards are kept: run the same command again to resume"
    )


def make_runner(name: RunnerName, *, workers: int, address: str | None = None, device: str = "cpu") -> ShardRunner:
    """Return a runner that computes `workers` shards at the same time.

    Parameters
    ----------
    workers : ignored for a running cluster, which has its own number
    address : scheduler of a running Dask cluster or head of a Ray cluster; None starts a local one
    device : "cuda" makes each shard request one GPU of the cluster

    Raises
    ------
    RecipeError : the runner's extra is not installed, or the runner cannot use this address or device
    """
    if name == "threads":
        if address:
            raise RecipeError(
                f"runner 'threads' takes no address, found {address!r}; choose dask or ray, or omit the address"
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
