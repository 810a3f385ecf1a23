"""Decompose all layers whose filters depend on each other, and write the table of their largest eigenvalues."""

from __future__ import annotations

from ..cache.alignments import aligned_tensors, missing_alignments, write_alignments
from ..cache.reports import DecomposeReport
from ..coordination.stop import StopSignal
from ..run import Run
from .decompose_shard import decompose_shard
from .shard_steps import MapShards


def align_layers(run: Run, map_shards: MapShards, *, workers: int, stop: StopSignal) -> list[DecomposeReport]:
    """Return one report per shard that was decomposed; none where no filter depends on other layers, or where the
    store has the table already.
    """
    if not missing_alignments(run.plan, run.store):
        return []
    jobs = run.jobs(shard for shard in run.plan.shards if aligned_tensors(shard))
    reports = map_shards(decompose_shard, jobs, workers=workers, stop=stop)
    write_alignments(run.plan, run.store, reports)
    return reports
