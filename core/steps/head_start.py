"""Compute shards while the caller starts what will compute the others, such as Prefect's server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..cache.alignments import missing_alignments
from ..cache.reports import ShardReport
from ..cache.runs import recorded_run
from ..coordination.stop import StopSignal
from ..coordination.threads import one_thread
from ..planning.cost.simulate import schedule_order
from ..run import ShardJob
from .map_in_threads import map_in_threads
from .merge_shard import merge_shard
from .open_run import PreparedRun
from .shard_steps import OnTensor, ShardStep


class HeadStart:
    """Shards of a run that are computed early, in threads of this process. Made by `head_start`.

    The most costly ones come first, as in every mapping of shards. `end` begins the mapping: from then on no shard is
    begun here, and `take` returns what was. As long as shards are taken in the order of `schedule_order`, no more of
    them are computed at the same time than the run has workers.
    """

    def __init__(self, prepared: PreparedRun, pool: ThreadPoolExecutor, stop: StopSignal) -> None:
        jobs = prepared.run.jobs()
        order = schedule_order([job.shard for job in jobs])
        self._stop = stop
        self._shards: dict[str, Future[ShardReport]] = {
            jobs[position].shard.part_key: pool.submit(merge_shard, jobs[position], stop=stop, wait=False)
            for position in order
        }

    def end(self) -> None:
        """Begin no more shards."""
        for future in self._shards.values():
            future.cancel()

    def take(self, job: ShardJob) -> ShardReport | None:
        """Return the report of a shard, after waiting for it; None where it was not begun, or failed.

        A shard that failed is to be computed again: its error comes again where someone can handle it.
        """
        future = self._shards.pop(job.shard.part_key, None)
        if future is None or future.cancel():
            return None
        try:
            return future.result()
        except Exception:
            return None

    def map_shards(
        self,
        step: ShardStep[Any],
        jobs: Sequence[ShardJob],
        *,
        workers: int,
        stop: StopSignal,
        on_report: Callable[[Any], None] | None = None,
        on_tensor: OnTensor | None = None,
    ) -> list[Any]:
        """Take what was computed, and compute the rest in threads: `map_in_threads` after a head start."""
        self.end()

        def compute(job: ShardJob, **options: Any) -> Any:
            early = self.take(job) if step is merge_shard else None
            return early if early is not None else step(job, **options)

        return map_in_threads(compute, jobs, workers=workers, stop=stop, on_report=on_report, on_tensor=on_tensor)


@contextlib.contextmanager
def head_start(prepared: PreparedRun, stop: StopSignal) -> Generator[HeadStart | None]:
    """Compute shards in `prepared.workers` threads until the block ends, or until `HeadStart.end`.

    Yields None where there is nothing to begin with: the destination has the result, or layers depend on each other.

    Parameters
    ----------
    stop : ends the shards in progress; so does the end of the block
    """
    run = prepared.run
    if prepared.destination.is_complete or missing_alignments(run.plan, run.store):
        yield None
        return
    own = stop.child()
    with (
        recorded_run(run, prepared.destination.store.root_uri),
        one_thread(),
        ThreadPoolExecutor(prepared.workers, thread_name_prefix="early-shard") as pool,
    ):
        started = HeadStart(prepared, pool, own)
        try:
            yield started
        finally:
            started.end()
            own.stop("the end of the run")
