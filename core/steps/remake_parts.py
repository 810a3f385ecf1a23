"""Find parts whose bytes have changed since they were computed, and compute them again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..cache.parts import record_key, verify_part
from ..cache.reports import ShardReport
from ..coordination.stop import StopSignal
from ..errors import CorruptObjectError, ObjectNotFoundError
from ..run import Run
from .merge_shard import merge_shard
from .shard_steps import MapShards

_PARALLEL_PARTS = 4


def remake_parts(
    run: Run, reports: Sequence[ShardReport], map_shards: MapShards, *, workers: int, stop: StopSignal
) -> list[ShardReport]:
    """Return the reports with those of damaged parts replaced; the same reports where no part is damaged.

    Cost: one read of all parts.

    Parameters
    ----------
    reports : one per shard, in the order of the plan
    """
    with ThreadPoolExecutor(_PARALLEL_PARTS, thread_name_prefix="parts") as pool:
        intact = list(pool.map(lambda report: _is_intact(run, report), reports))
    damaged = [report for report, good in zip(reports, intact, strict=True) if not good]
    if not damaged:
        return list(reports)
    run.store.delete([key for report in damaged for key in (record_key(report.part_key), report.part_key)])
    jobs = run.jobs(run.plan.shards[report.index] for report in damaged)
    made = {report.index: report for report in map_shards(merge_shard, jobs, workers=workers, stop=stop)}
    return [made.get(report.index, report) for report in reports]


def _is_intact(run: Run, report: ShardReport) -> bool:
    try:
        verify_part(run.store, report.part_key)
    except (CorruptObjectError, ObjectNotFoundError):
        return False
    return True
