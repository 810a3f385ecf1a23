"""Map shards over Prefect tasks: one task per layer shard, on the runner that the recipe or the user chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from prefect.futures import PrefectFuture
from prefect.tasks import Task
from prefect.utilities.annotations import quote

from ..core.choices import RunnerName
from ..core.coordination.stop import StopSignal
from ..core.planning.cost.simulate import schedule_order
from ..core.run import ShardJob
from ..core.steps.head_start import HeadStart
from ..core.steps.map_in_threads import map_in_threads
from ..core.steps.merge_shard import merge_shard
from ..core.steps.shard_steps import OnTensor, ShardStep
from ..tasks.runners.runner import ShardRunner, make_runner
from ..tasks.shard_task import SHARD_TASKS
from .server_health import ServerHealth, is_failure_of_prefect

_POLL_SECONDS = 0.2

ReportT = TypeVar("ReportT")


@dataclass(frozen=True, slots=True)
class PrefectMap:
    """`core.steps.shard_steps.MapShards` on a Prefect runner.

    Where Prefect itself fails, because its server ended, the remaining shards are computed in threads of this process:
    what a shard needs and leaves is in the store.

    address : of a running Dask or Ray cluster
    early : merged shards that are computed already; their tasks return these
    """

    runner: RunnerName
    address: str | None = None
    server: ServerHealth = field(default_factory=ServerHealth)
    early: HeadStart | None = None

    def __call__(
        self,
        step: ShardStep[ReportT],
        jobs: Sequence[ShardJob],
        *,
        workers: int,
        stop: StopSignal,
        on_report: Callable[[ReportT], None] | None = None,
        on_tensor: OnTensor | None = None,
    ) -> list[ReportT]:
        """Return one report per job, in the order of `jobs`; the first error ends the run after the shards in progress.

        Costly shards start first, so that no long one is left for the end. Shards that another run has claimed come
        last, when they may be finished: two runs on one store share the work.
        """
        if not jobs:
            return []
        reports: dict[int, ReportT] = {}

        def keep(report: ReportT, job: ShardJob) -> None:
            reports[job.shard.index] = report
            if on_report is not None:
                on_report(report)

        try:
            self._map(SHARD_TASKS[step], jobs, reports, keep, workers=workers, stop=stop, on_tensor=on_tensor)
        except Exception as error:
            if stop.is_set or not is_failure_of_prefect(error):
                raise
            self.server.failed(error)
            left = [job for job in jobs if job.shard.index not in reports]
            map_rest = map_in_threads if self.early is None else self.early.map_shards
            rest = map_rest(step, left, workers=workers, stop=stop, on_report=on_report, on_tensor=on_tensor)
            reports |= {job.shard.index: report for job, report in zip(left, rest, strict=True)}
        return [reports[job.shard.index] for job in jobs]

    def _map(
        self,
        task: Task[..., Any],
        jobs: Sequence[ShardJob],
        reports: Mapping[int, Any],
        keep: Callable[[Any, ShardJob], None],
        *,
        workers: int,
        stop: StopSignal,
        on_tensor: OnTensor | None,
    ) -> None:
        """Compute the jobs in Prefect tasks. `keep` adds to `reports` what is finished, also before an error."""
        shards = stop.child()
        common: dict[str, Any] = {}
        if self.runner == "threads":
            common |= {"stop": quote(shards), "on_tensor": quote(on_tensor) if on_tensor is not None else None}
            if self.early is not None and task is SHARD_TASKS[merge_shard]:
                self.early.end()
                common |= {"early": quote(self.early)}
        device = jobs[0].settings.device
        with make_runner(self.runner, workers=workers, address=self.address, device=device) as runner:
            try:
                self._map_on(runner, task, jobs, reports, keep, common=common, stop=stop, shards=shards)
            except Exception as error:  # also an error of submitting to a cluster that has ended
                explained = runner.explain(error)
                if explained is None:
                    raise
                raise explained from error

    def _map_on(
        self,
        runner: ShardRunner,
        task: Task[..., Any],
        jobs: Sequence[ShardJob],
        reports: Mapping[int, Any],
        keep: Callable[[Any, ShardJob], None],
        *,
        common: Mapping[str, Any],
        stop: StopSignal,
        shards: StopSignal,
    ) -> None:
        failure: BaseException | None = None
        for wait in (False, True):
            order = schedule_order([job.shard for job in jobs])
            left = [jobs[position] for position in order if jobs[position].shard.index not in reports]
            for job, future in _as_completed(runner, task, left, {**common, "wait": wait}, shards):
                try:
                    report = runner.result(future, shards)
                except Exception as error:
                    if is_failure_of_prefect(error) and not stop.is_set and failure is None:
                        raise
                    if failure is None:
                        failure = stop.error() if stop.is_set else error
                        shards.stop("an error in another shard")
                    continue
                if report is not None:
                    keep(report, job)
            if failure is None and len(reports) < len(jobs) and stop.is_set:
                failure = stop.error()
            if failure is not None:
                raise failure


def _as_completed(
    runner: ShardRunner,
    task: Task[..., Any],
    jobs: Sequence[ShardJob],
    common: Mapping[str, Any],
    stop: StopSignal,
) -> Iterator[tuple[ShardJob, PrefectFuture[Any]]]:
    """Submit the jobs and yield each with its future once it is done.

    After `stop` is set no job is submitted, and jobs on a runner that does not see the signal are no longer awaited.
    """
    done: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    pending: dict[PrefectFuture[Any], ShardJob] = {}  # Dask drops a task when nobody holds its future
    for job in jobs:
        if stop.is_set:
            break
        future = runner.submit(task, {"label": job.label, "job": job, **common}, job.shard.peak_bytes)
        pending[future] = job
        future.add_done_callback(done.put)
        while not done.empty():  # submitting thousands of jobs takes a while: report failures meanwhile
            future = done.get()
            yield pending[future], future
            del pending[future]
    while pending and (runner.sees_stop_signal or not stop.is_set):
        runner.check()
        with suppress(Empty):
            future = done.get(timeout=_POLL_SECONDS)
            yield pending[future], future
            del pending[future]
