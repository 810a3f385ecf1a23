"""Compute shards on a Dask cluster: a local one of several processes, or a running one given by its address."""

from __future__ import annotations

import asyncio
import logging
import sys
from concurrent.futures import wait
from contextlib import nullcontext
from importlib.metadata import version as installed_version
from typing import Any, Self

import dask
from distributed import CancelledError, Client, KilledWorker, Worker, WorkerPlugin
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL
from prefect.tasks import Task
from prefect_dask import DaskTaskRunner

from ...core.coordination.stop import StopSignal
from ...core.errors import EigenmergeError, RecipeError, WorkerError, one_line
from ..worker_process import prepare_worker
from .dask_watch import DaskWatch
from .runner import ShardRunner, workers_died_error

# Python 3.11 deadlocks when a thread starts while another one lists all threads (python/cpython#106883). Dask's
# profiler lists them a hundred times a second (dask/distributed#8616): two of five local runs hung for the five minutes
# after which Dask drops a silent worker.
_PROFILER_MAY_HANG = sys.version_info < (3, 12)
_REACH_SECONDS = 10.0
_POLL_SECONDS = 0.2

# What the client raises where its scheduler ended or cannot be reached any more.
_SCHEDULER_LOST = (CancelledError, ClosedClientError, CommClosedError)

# The code that a worker process of a local cluster runs first.
_PREPARE_WORKER = f"from {prepare_worker.__module__} import prepare_worker; prepare_worker()"


class StopProfiler(WorkerPlugin):
    """Stop Dask's statistical profiler on a worker, because of the deadlock that `_PROFILER_MAY_HANG` describes."""

    name = "eigenmerge-stop-profiler"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        for kind in ("profile", "profile-cycle"):
            # Removed, not only stopped: a worker calls its plugins before it starts its periodic callbacks.
            if (callback := worker.periodic_callbacks.pop(kind, None)) is not None:
                callback.stop()


class DaskRunner(ShardRunner):
    """Computes one shard at a time per worker, with one thread, so that memory is what the plan projected.

    Where workers offer GPUs (`dask worker --resources GPU=1`), a shard for "cuda" requests one. Where no worker does,
    any worker takes the shard and waits for a free GPU of its machine (`core.coordination.devices`).
    """

    sees_stop_signal = False

    def __init__(self, workers: int, address: str | None, device: str) -> None:
        self._address = address
        self._on_gpu = device.startswith("cuda")
        self._resources: dict[str, float] | None = None
        self._levels: dict[logging.Logger, int] = {}
        self._watch: DaskWatch | None = None
        if address:
            super().__init__(DaskTaskRunner(address=address))
            return
        cluster = {
            "n_workers": workers,
            "threads_per_worker": 1,
            "dashboard_address": "127.0.0.1:0",
            "silence_logs": logging.CRITICAL,
            "resources": {"GPU": 1} if self._on_gpu else {},
            "preload": [_PREPARE_WORKER],
            "env": {
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": str(not _PROFILER_MAY_HANG),
            },
        }
        super().__init__(DaskTaskRunner(cluster_kwargs=cluster))

    def __enter__(self) -> Self:
        """Connect to the cluster and check its workers.

        Raises
        ------
        RecipeError : no scheduler answers, or a worker cannot compute shards of this run
        """
        super().__enter__()
        self._levels = _silence_dask()
        try:
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for logger, level in self._levels.items():
            logger.setLevel(level)

    def submit(self, task: Task[..., Any], parameters: dict[str, Any], peak_bytes: int) -> PrefectFuture[Any]:
        with dask.annotate(resources=self._resources) if self._resources else nullcontext():
            return super().submit(task, parameters, peak_bytes)

    def result(self, future: PrefectFuture[Any], stop: StopSignal) -> Any:
        # Until it is fetched, a result is on its worker only. Where that worker dies, Dask computes the shard again,
        # and `future.result()` would wait for that without a limit.
        client = self._runner.client
        fetching = asyncio.run_coroutine_threadsafe(_fetch(client, future), client.loop.asyncio_loop)
        try:
            while not wait([fetching], _POLL_SECONDS).done:
                self.check()
                stop.check()
        except BaseException:
            fetching.cancel()
            raise
        found = fetching.result()
        return found.result() if isinstance(found, State) else found

    def check(self) -> None:
        if self._watch is not None:
            self._watch.check()

    def explain(self, error: Exception) -> EigenmergeError | None:
        if isinstance(error, _SCHEDULER_LOST):
            where = f" at {self._address}" if self._address else ""
            return WorkerError(
                f"the Dask scheduler{where} ended, or the connection to it was lost ({one_line(error)[:200]}); finished"
                " shards are kept: start the cluster and run the same command again to resume"
            )
        if not isinstance(error, KilledWorker):
            return None
        died, last = error.allowed_failures + 1, error.last_worker.address
        return workers_died_error(
            f"{died} Dask workers died while they computed the same shard, the last one at {last}"
        )

    def _connect(self) -> None:
        try:
            client = self._runner.client
        except (OSError, ValueError) as error:  # no scheduler, or not an address
            raise RecipeError(
                f"runner 'dask': no scheduler answers at {self._address!r} ({one_line(error)}); give the address that"
                " `dask scheduler` prints, such as tcp://host:8786"
            ) from error
        if self._address:
            if _PROFILER_MAY_HANG:
                client.register_plugin(StopProfiler())
            self._check_scheduler()
            self._check_workers()
            self._watch = DaskWatch(client, self._address)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if self._on_gpu and any("GPU" in worker["resources"] for worker in workers):
            self._resources = {"GPU": 1}

    def _check_scheduler(self) -> None:
        """Check that the scheduler has this version of eigenmerge, and let it import what it needs of it.

        A scheduler unpickles the tasks that it receives. It does not answer while it imports, which may take a minute
        on a busy machine or a network file system, and Dask drops a connection that has data waiting for 30 seconds.
        """
        ours = installed_version("eigenmerge")
        try:
            theirs, _ = self._runner.client.run_on_scheduler(_describe_worker, None)
        except ImportError as error:
            raise RecipeError(
                f"runner 'dask': the scheduler at {self._address} cannot import eigenmerge ({one_line(error)}); install"
                f" version {ours} there"
            ) from error
        if theirs != ours:
            raise RecipeError(
                f"runner 'dask': the scheduler at {self._address} has eigenmerge {theirs}, this process {ours}; install"
                " one version everywhere"
            )

    def _check_workers(self) -> None:
        """Check that every worker has this version of eigenmerge and reaches the Prefect server of the run."""
        api_url = PREFECT_API_URL.value()
        ours = installed_version("eigenmerge")
        answers = self._runner.client.run(_describe_worker, api_url, on_error="return")
        for worker, answer in answers.items():
            if isinstance(answer, Exception):
                raise RecipeError(
                    f"runner 'dask': worker {worker} cannot import eigenmerge ({answer!r}); install version {ours}"
                    " there"
                ) from answer
            theirs, unreached = answer
            if theirs != ours:
                raise RecipeError(
                    f"runner 'dask': worker {worker} has eigenmerge {theirs}, this process {ours}; install one"
                    " version everywhere"
                )
            if unreached is not None:
                raise RecipeError(
                    f"runner 'dask': worker {worker} does not reach the Prefect server at {api_url} ({unreached});"
                    " start one that all machines reach (`prefect server start --host ...`) and set PREFECT_API_URL"
                )


async def _fetch(client: Client, future: PrefectFuture[Any]) -> Any:
    """Return what the task of a future returned on its worker."""
    wrapped: Any = future
    gathering: Any = client.gather(wrapped.wrapped_future, asynchronous=True)
    return await gathering


def _silence_dask() -> dict[logging.Logger, int]:
    """Silence Dask's loggers if Prefect's are silent, and return their previous levels.

    The run itself reports lost workers and refused connections.
    """
    if PREFECT_LOGGING_LEVEL.value() != "CRITICAL":
        return {}
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    return levels


def _describe_worker(api_url: str | None) -> tuple[str, str | None]:
    """Return the version of eigenmerge of this process, and why it does not reach the Prefect server, if so.

    Imports everything that a shard needs: what is missing is an ImportError here.
    """
    import httpx

    from .. import shard_task  # noqa: F401  # pyright: ignore[reportUnusedImport]

    if api_url is not None:
        try:
            httpx.get(f"{api_url}/health", timeout=_REACH_SECONDS)  # any answer proves that it is reached, 401 too
        except httpx.HTTPError as error:
            return installed_version("eigenmerge"), str(error) or type(error).__name__
    return installed_version("eigenmerge"), None
