"""Map shards over threads of this process, without Prefect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

from ..coordination.claims import ClaimedElsewhere
from ..coordination.stop import StopSignal
from ..planning.cost.simulate import schedule_order
from ..run import ShardJob
from .shard_steps import OnTensor, ShardStep

ReportT = TypeVar("ReportT")


def map_in_threads(
    step: ShardStep[ReportT],
    jobs: Sequence[ShardJob],
    *,
    workers: int,
    stop: StopSignal,
    on_report: Callable[[ReportT], None] | None = None,
    on_tensor: OnTensor | None = None,
) -> list[ReportT]:
    """Return one report per job, in the order of `jobs`. An instance of `MapShards`.

    Costly shards start first. Shards that another run has claimed come last, when they may be finished. The first error
    stops the run: shards in progress end between two tensors.
    """
    reports: dict[int, ReportT] = {}
    failure: BaseException | None = None
    shards = stop.child()

    def compute(job: ShardJob, wait: bool) -> ReportT | None:
        if shards.is_set:
            return None
        try:
            return step(job, stop=shards, on_tensor=on_tensor, wait=wait)
        except ClaimedElsewhere:
            return None

    with ThreadPoolExecutor(workers, thread_name_prefix="shard") as pool:
        for wait in (False, True):
            order = [jobs[position] for position in schedule_order([job.shard for job in jobs])]
            left = [job for job in order if job.shard.index not in reports]
            futures: dict[Future[ReportT | None], ShardJob] = {pool.submit(compute, job, wait): job for job in left}
            for future in as_completed(futures):
                try:
                    report = future.result()
                except Exception as error:
                    if failure is None:
                        failure = stop.error() if stop.is_set else error
                        shards.stop("an error in another shard")
                    continue
                if report is None:
                    continue
                reports[futures[future].shard.index] = report
                if on_report is not None:
                    on_report(report)
            if failure is None and len(reports) < len(jobs) and stop.is_set:
                failure = stop.error()
            if failure is not None:
                raise failure
    return [reports[job.shard.index] for job in jobs]
