"""Result of a finished run: where the checkpoint is, and what was computed, reused, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ..planning.plan import Plan
from .reports import DecomposeReport, ShardReport, TensorReport

#: A truncation error below this is rounding of float32: the adapter holds the merged delta exactly.
EXACT_BELOW = 1e-6


@dataclass(frozen=True, slots=True)
class MergeResult:
    """One finished merge. Counts and bytes are of this run.

    bytes_read : of base and experts
    kept_bytes_read : of kept sums that were read instead of experts
    bytes_through_reduce : of the checkpoint's data that passed through the memory of the assembling process
    seconds : wall time
    truncation_error : of an adapter, the largest share of a weight's merged delta that its rank leaves out (Frobenius
        norm), in `truncated_tensor`; None for full checkpoints
    error : the largest difference of what is stored from what was merged, relative (Frobenius norm), in `error_tensor`:
        of an adapter's factors, rank and rounding; None where results are only cast
    already_complete : the destination had the result of an earlier run of this recipe, and this run did nothing
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
    truncation_error: float | None = None
    truncated_tensor: str | None = None
    error: float | None = None
    error_tensor: str | None = None
    already_complete: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return the result as JSON content."""
        return asdict(self)


def merge_result(
    plan: Plan,
    reports: Sequence[ShardReport],
    decomposed: Sequence[DecomposeReport] = (),
    *,
    destination: str,
    bytes_through_reduce: int,
    seconds: float,
    warnings: tuple[str, ...] = (),
) -> MergeResult:
    """Return the result of a finished run.

    Parameters
    ----------
    reports : one per shard
    decomposed : reports of shards that were decomposed before the merge, where layers are aligned
    warnings : of the run, besides those of the plan and of the shards
    """
    worst, rounded = worst_truncation(reports), worst_error(reports)
    return MergeResult(
        destination=destination,
        run_key=plan.run_key,
        files=tuple(file.name for file in plan.files),
        num_tensors=plan.num_tensors,
        num_experts=len(plan.experts),
        method=str(plan.recipe.get("merge_method")),
        bytes_written=plan.bytes_written,
        bytes_through_reduce=bytes_through_reduce,
        seconds=seconds,
        warnings=plan.warnings + warnings + tuple(note for report in reports for note in _notes(report)),
        truncation_error=worst.truncation_error if worst else None,
        truncated_tensor=worst.name if worst else None,
        error=rounded.error if rounded else None,
        error_tensor=rounded.name if rounded else None,
        already_complete=False,
        **count_shards(reports, decomposed),
    )


def complete_result(plan: Plan, destination: str, *, seconds: float) -> MergeResult:
    """Return the result of a run that found its checkpoint complete: it computed, read and wrote nothing."""
    nothing = merge_result(plan, (), destination=destination, bytes_through_reduce=0, seconds=seconds)
    return replace(nothing, bytes_written=0, already_complete=True)


def count_shards(reports: Sequence[ShardReport], decomposed: Sequence[DecomposeReport] = ()) -> dict[str, int]:
    """Return the fields of MergeResult that are sums over shards.

    Parameters
    ----------
    reports : of all shards
    decomposed : of the shards that this run decomposed before it merged them, for cross-layer alignment; their reports
        as merged shards count those spectra as reused
    """
    made = [report for report in reports if not report.reused]
    computed_before = sum(report.num_computed for report in decomposed)
    return {
        "shards_done": len(made),
        "shards_reused": len(reports) - len(made),
        "decompositions_computed": computed_before + sum(report.decompositions_computed for report in reports),
        "decompositions_reused": sum(report.decompositions_reused for report in reports) - computed_before,
        "bytes_read": sum(report.bytes_read for report in [*made, *decomposed]),
        "kept_bytes_read": sum(report.kept_bytes_read for report in made),
    }


def worst_truncation(reports: Sequence[ShardReport]) -> TensorReport | None:
    """Return the tensor with the largest truncation error, None where the result is no adapter."""
    tensors = [tensor for report in reports for tensor in report.tensors if tensor.truncation_error is not None]
    return max(tensors, key=lambda tensor: tensor.truncation_error or 0.0, default=None)


def worst_error(reports: Sequence[ShardReport]) -> TensorReport | None:
    """Return the tensor whose stored form differs most from what was merged, None where results are only cast."""
    tensors = [tensor for report in reports for tensor in report.tensors if tensor.error is not None]
    return max(tensors, key=lambda tensor: tensor.error or 0.0, default=None)


def _notes(report: ShardReport) -> list[str]:
    found = [] if report.reused else list(report.notes)
    return found + [f"{tensor.name}: {note}" for tensor in report.tensors for note in tensor.notes]
