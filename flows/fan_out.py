"""One task per layer shard, on whichever runner was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from prefect.futures import PrefectFuture
from prefect.tasks import Task
from prefect.utilities.annotations import quote

from ..core.cache.alignments import aligned_tensors, gather_alignments, largest_of, missing_alignments
from ..core.cache.reports import DecomposeReport, ShardReport
from ..core.coordination.stop import StopSignal
from ..core.planning.cost.simulate import schedule_order
from ..core.planning.plan import LayerShard, Plan, RunSettings
from ..core.planning.plan_json import shard_to_json
from ..core.storage.store import Store
from ..tasks.decompose_shard import decompose_shard
from ..tasks.merge_shard import merge_shard
from ..tasks.runners.runner import RunnerName, ShardRunner, available_cores, make_runner
from .run_context import RunContext

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Pool:
    """Who computes the shards of one run, and who watches."""

    workers: int
    runner: RunnerName
    address: str | None  # of a running cluster
    run: RunContext


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
    pool: Pool,
    *,
    done: Callable[[ShardReport], None],
) -> list[ShardReport]:
    """Every shard's report, in the order of the plan; the first error ends the run after the shards in hand.

    `done` hears of each as it comes.
    """

    def tell(report: ShardReport) -> None:
        done(report)
        pool.run.listener.shard_done(report)

    reports: list[ShardReport] = _on_shards(
        merge_shard, plan.shards, plan.settings, store_uri, storage_options, pool, done=tell
    )
    return reports


def align_layers(
    plan: Plan,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    pool: Pool,
) -> list[DecomposeReport]:
    """Where filters look at the eigenvalues of all layers: decompose all of these first, and leave the table of the
    largest values where the merge looks for it. Nothing happens where no filter does, or the table is there.
    """
    store = Store(store_uri, storage_options)
    if not missing_alignments(plan, store):
        return []
    reports: list[DecomposeReport] = _on_shards(
        decompose_shard,
        [shard for shard in plan.shards if aligned_tensors(shard)],
        plan.settings,
        store_uri,
        storage_options,
        pool,
    )
    gather_alignments(plan, store, largest_of(report.largest_values for report in reports))
    return reports


def _on_shards(
    task: Task[..., Any],
    shards: Sequence[LayerShard],
    settings: RunSettings,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    pool: Pool,
    *,
    done: Callable[[Any], None] | None = None,
) -> list[Any]:
    """What the task says of each shard, in the order given.

    Costly shards go first: no long one is left for the end. What another run is at comes last, when it may be done: two
    runs on one store share the work.
    """
    run = pool.run
    reports: dict[int, Any] = {}
    failure: BaseException | None = None
    threads_before = torch.get_num_threads()
    common = {"settings": json.dumps(asdict(settings)), "store_uri": store_uri, "storage_options": storage_options}
    if pool.runner == "threads":
        common |= {"stop": quote(run.stop), "on_tensor": quote(run.listener.tensor_done) if done is not None else None}
    with make_runner(pool.runner, workers=pool.workers, address=pool.address, device=settings.device) as runner:
        for wait in (False, True):
            left = [shards[position] for position in schedule_order(shards) if shards[position].index not in reports]
            for future in _as_they_end(runner, task, left, common | {"wait": wait}, run.stop):
                try:
                    report = future.result()
                except Exception as error:
                    if failure is None:
                        failure = run.stop.error() if run.stop.is_set else runner.explain(error) or error
                        run.stop.stop("an error in another shard")
                    continue
                if report is None:
                    continue
                reports[report.index] = report
                if done is not None:
                    done(report)
            if failure is None and len(reports) < len(shards) and run.stop.is_set:
                failure = run.stop.error()
            if failure is not None:
                break
    torch.set_num_threads(threads_before)  # shards set one; the caller's notebook goes on after us
    if failure is not None:
        raise failure
    return [reports[shard.index] for shard in shards]


def _as_they_end(
    runner: ShardRunner,
    task: Task[..., Any],
    shards: Sequence[LayerShard],
    common: Mapping[str, Any],
    stop: StopSignal,
) -> Iterator[PrefectFuture[Any]]:
    """Submit the shards; each future when it is done. No shard is submitted once `stop` is set, and those of a runner
    that does not see it are waited for no longer.
    """
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    pending: set[PrefectFuture[Any]] = set()  # Dask forgets a task whose future nobody holds
    for shard in shards:
        if stop.is_set:
            break
        parameters = {"label": _label(shard), "shard": json.dumps(shard_to_json(shard)), **common}
        future = runner.submit(task, parameters, shard.peak_bytes)
        pending.add(future)
        future.add_done_callback(ended.put)
        while not ended.empty():  # submitting thousands takes a while: hear of a failure meanwhile
            yield (future := ended.get())
            pending.remove(future)
    while pending and (runner.sees_stop_signal or not stop.is_set):
        with suppress(Empty):
            yield (future := ended.get(timeout=_POLL_SECONDS))
            pending.remove(future)


def _label(shard: LayerShard) -> str:
    return f"{shard.index:05d} {shard.name}"
