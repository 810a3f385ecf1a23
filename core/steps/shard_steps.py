"""The interface between a run and the workers that compute its shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..coordination.stop import StopSignal
from ..run import ShardJob

ReportT = TypeVar("ReportT")
ReportT_co = TypeVar("ReportT_co", covariant=True)

OnTensor = Callable[[str, int], None]


class ShardStep(Protocol[ReportT_co]):
    """A computation on one shard: `merge_shard` or `decompose_shard`. Idempotent; may run in any process."""

    def __call__(
        self,
        job: ShardJob,
        *,
        stop: StopSignal | None = None,
        on_tensor: OnTensor | None = None,
        wait: bool = True,
    ) -> ReportT_co:
        """Compute the shard and return its report.

        Parameters
        ----------
        stop : checked between two tensors; what is unfinished is discarded
        on_tensor : called after each tensor with its name and the bytes read for it
        wait : whether to wait for another run that computes the same shard; False raises ClaimedElsewhere instead
        """
        ...


class MapShards(Protocol):
    """Applies a step to many shards: in turn, in threads, or on a cluster."""

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
        """Return one report per job, in the order of `jobs`. The first error ends the mapping and is raised.

        Parameters
        ----------
        workers : shards to compute at the same time
        on_report : called with each report as soon as it is there
        on_tensor : as for `ShardStep`; ignored by mappings that run in other processes
        """
        ...


def map_in_turn(
    step: ShardStep[ReportT],
    jobs: Sequence[ShardJob],
    *,
    workers: int = 1,
    stop: StopSignal,
    on_report: Callable[[ReportT], None] | None = None,
    on_tensor: OnTensor | None = None,
) -> list[ReportT]:
    """Compute one shard after the other in this thread; `workers` is ignored."""
    reports: list[ReportT] = []
    for job in jobs:
        reports.append(step(job, stop=stop, on_tensor=on_tensor))
        if on_report is not None:
            on_report(reports[-1])
    return reports
