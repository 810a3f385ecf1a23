"""Compute shards on Ray: a local instance, or a running cluster. Ray places them by CPUs, GPUs and memory."""

from __future__ import annotations

import logging
from typing import Any, Self

import ray  # pyright: ignore[reportMissingImports]
from prefect.futures import PrefectFuture
from prefect.tasks import Task
from prefect_ray import RayTaskRunner  # pyright: ignore[reportMissingImports]
from prefect_ray.context import remote_options  # pyright: ignore[reportMissingImports]

from ...core.errors import EigenmergeError, RecipeError, one_line
from .runner import ShardRunner, workers_died_error

_QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}


class RayRunner(ShardRunner):
    """Requests one CPU per shard and, on "cuda", one GPU, or else the memory that the plan projected."""

    sees_stop_signal = False

    def __init__(self, workers: int, address: str | None, device: str) -> None:
        if device.startswith("cuda:"):
            raise RecipeError(
                f"runner 'ray' chooses the GPU of each shard itself: expected device 'cuda', found {device!r}"
            )
        self._on_gpu = device == "cuda"
        self._address = address
        self._largest_node = 0
        kwargs = {"log_to_driver": False} if address else {"num_cpus": workers, **_QUIET}
        super().__init__(RayTaskRunner(address=address, init_kwargs=kwargs))

    def __enter__(self) -> Self:
        """Connect to the cluster, or start a local instance.

        Raises
        ------
        RecipeError : no cluster answers
        """
        try:
            super().__enter__()
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RecipeError(
                f"runner 'ray': no cluster answers at {self._address!r} ({one_line(error)}); give the"
                " address of its head, such as ray://host:10001"
            ) from error
        self._largest_node = max((int(node["Resources"].get("memory", 0)) for node in ray.nodes()), default=0)
        return self

    def submit(self, task: Task[..., Any], parameters: dict[str, Any], peak_bytes: int) -> PrefectFuture[Any]:
        # A request for more memory than the largest node has would never be served.
        wanted = {"num_gpus": 1} if self._on_gpu else {"memory": min(peak_bytes, self._largest_node)}
        with remote_options(num_cpus=1, **wanted):
            return super().submit(task, parameters, peak_bytes)

    def explain(self, error: Exception) -> EigenmergeError | None:
        died = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
        if not isinstance(error, died):
            return None
        return workers_died_error(f"the Ray workers that computed one shard died ({one_line(error)[:300]})")
