"""Time left follows cost, found shards count as nothing, and the tensor that is waited for is of the largest shard."""

from __future__ import annotations

from eigenmerge.core.cache.reports import ShardReport, TensorReport
from eigenmerge.core.planning.plan import LayerShard, Plan, RunSettings, TensorPlan
from eigenmerge.deployments.cli.merge_progress import MergeProgress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_plan() -> Plan:
    """An embedding with many bytes, and two layers whose decompositions take nearly all of the time."""
    costs = {"embed": (10**6, 0.0), "layer.0": (10**3, 3e12), "layer.1": (10**3, 1e12)}
    shards = tuple(
        LayerShard(
            index,
            (TensorPlan(name, (1,), "F32", "merge", "", None, bytes_read=size, flops=flops),),
            f"parts/{index}",
            size,
            0,
            flops,
            0,
        )
        for index, (name, (size, flops)) in enumerate(costs.items())
    )
    return Plan("", {}, RunSettings(), None, (), shards, (), ())


def report(index: int, name: str, bytes_read: int, *, reused: bool = False) -> ShardReport:
    return ShardReport(
        index, "", 0, 0, "", "", 0.0, bytes_read, (TensorReport(name, "merge", None, 0.0, ""),), reused=reused
    )


def test_time_left_is_by_cost_and_not_by_count() -> None:
    clock = Clock()
    progress = MergeProgress(make_plan(), clock)
    assert progress.seconds_left is None and progress.waiting_for == "layer.0"
    assert progress.facts()[-1] == "time left unknown"
    clock.now += 15
    progress.tensor_done("layer.0", 800)
    progress.shard_done(report(1, "layer.0", 800))
    assert 4.9 < (progress.seconds_left or 0) < 5.1  # a quarter of the cost is left, with two of three shards
    assert progress.waiting_for == "layer.1"
    assert progress.facts() == ["1/3 shards", "800 B of 1 MB", "53.3 B/s", "5.0 s left"]
    progress.shard_done(report(2, "layer.1", 1000))
    assert (progress.seconds_left or 1) < 0.01 and progress.bytes_read == 1800


def test_found_shards_are_neither_done_nor_left() -> None:
    clock = Clock()
    progress = MergeProgress(make_plan(), clock)
    progress.shard_done(report(1, "layer.0", 1000, reused=True))
    assert (progress.shards_done, progress.bytes_read, progress.seconds_left) == (1, 0, None)
    clock.now += 10
    progress.shard_done(report(2, "layer.1", 1000))
    assert progress.line().endswith("; waiting for embed") and progress.line().startswith("2/3 shards, 1 KB of 1 MB, ")
    progress.shard_done(report(0, "embed", 10**6))
    assert progress.share > 0.999 and (progress.seconds_left, progress.waiting_for) == (0.0, None)
