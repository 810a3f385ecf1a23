"""What a finished run says: where the checkpoint is, and what was computed and what reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from .reports import ShardReport


@dataclass(frozen=True, slots=True)
class MergeResult:
    """One finished merge. Byte counts are of this run.

    bytes_read : of base and experts
    kept_bytes_read : of sums over experts that the store kept and gave instead of those experts
    bytes_through_reduce : that passed through the assembling process
    """

    destination: str
    run_key: str
    files: tuple[str, ...]
    num_tensors: int
    num_experts: int
    method: str
    shards_done: int
    shards_reused: int
    decompositions_computed: int
    decompositions_reused: int
    bytes_read: int
    kept_bytes_read: int
    bytes_written: int
    bytes_through_reduce: int
    seconds: float
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def count_shards(reports: Sequence[ShardReport]) -> dict[str, int]:
    """The fields of MergeResult that add up over shards."""
    return {
        "shards_done": sum(not report.reused for report in reports),
        "shards_reused": sum(report.reused for report in reports),
        "decompositions_computed": sum(report.decompositions_computed for report in reports),
        "decompositions_reused": sum(report.decompositions_reused for report in reports),
        "bytes_read": sum(report.bytes_read for report in reports if not report.reused),
        "kept_bytes_read": sum(report.kept_bytes_read for report in reports if not report.reused),
    }
