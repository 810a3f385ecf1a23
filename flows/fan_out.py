"""One task per layer shard, on whichever runner was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from prefect.futures import as_completed
from prefect.utilities.annotations import quote

from ..core.planning.plan import LayerShard, Plan
from ..core.planning.simulate import schedule_order
from ..core.steps.reports import ShardReport
from ..tasks.merge_shard import merge_shard
from .run_context import RunContext
from .runners import RunnerName, available_cores, make_runner


def choose_workers(plan: Plan, workers: int | None, max_memory: int | None, device: str) -> int:
    """Shards to compute at once: as asked, else one per core (or per GPU), never more than fit `max_memory`.

    One thread per shard: two layers with one thread each are done sooner than one after the other with two, because an
    eigendecomposition is bound by memory, and the order of a sum does not depend on the number of workers.
    """
    if workers is None:
        workers = (
            torch.cuda.device_count() if device == "cuda" else 1 if device.startswith("cuda") else available_cores()
        )
    if max_memory is not None and plan.peak_bytes > 0:
        workers = min(workers, max_memory // plan.peak_bytes)
    return max(1, min(workers, len(plan.shards)))


def merge_shards(
    plan: Plan,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    *,
    workers: int,
    runner: RunnerName,
    address: str | None,
    run: RunContext,
) -> list[ShardReport]:
    """Every shard's report, in the order of the plan; the first error ends the run after the shards in hand.

    Costly shards go first, so that no long one is left for the end.
    """
    in_process = runner == "threads"
    reports: dict[int, ShardReport] = {}
    threads_before = torch.get_num_threads()
    with make_runner(runner, workers=workers, address=address, device=plan.settings.device) as pool:
        futures = [
            pool.submit(
                merge_shard,
                parameters={
                    "label": _label(plan.shards[index]),
                    # quote: Prefect would walk every field of the plan in search of futures
                    "shard": quote(plan.shards[index]),
                    "settings": quote(plan.settings),
                    "store_uri": store_uri,
                    "storage_options": quote(storage_options),
                    "stop": quote(run.stop) if in_process else None,
                    "on_tensor": quote(run.listener.tensor_done) if in_process else None,
                },
            )
            for index in schedule_order(plan.shards)
        ]
        failure: BaseException | None = None
        for future in as_completed(futures):
            try:
                report = future.result()
            except Exception as error:
                if failure is None:
                    failure = error
                    run.stop.stop("an error in another shard")
                continue
            reports[report.index] = report
            run.listener.shard_done(report)
    torch.set_num_threads(threads_before)  # shards set one; the caller's notebook goes on after us
    if failure is not None:
        raise failure
    return [reports[shard.index] for shard in plan.shards]


def _label(shard: LayerShard) -> str:
    return f"{shard.index:05d} {shard.name}"
