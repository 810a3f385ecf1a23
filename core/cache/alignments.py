"""Tables of the largest eigenvalues of aligned layers (cross-layer alignment, SWUDI+).

The filter of an aligned layer depends on the largest eigenvalue of every layer of its group. `decompose_shard` finds
these values, `write_alignments` writes one table for each group under the plan's `alignment_key`, and `merge_shard`
reads it. The key is made of the keys of the group's spectra, so a table that exists is about these layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard, cast

from ..errors import CorruptObjectError, ObjectNotFoundError, StoreError
from ..numerics.interference.exp_times import align_exp_times
from ..planning.plan import LayerShard, Plan, TensorPlan, decompositions
from ..storage.store import Store
from .reports import DecomposeReport
from .sealed_json import read_sealed_json, write_sealed_json

FORMAT_VERSION = 1


def aligned_tensors(shard: LayerShard) -> list[TensorPlan]:
    """Return the tensors of a shard whose filter depends on other layers."""
    return [tensor for tensor in shard.tensors if tensor.alignment_key or tensor.outputs_alignment_key]


def alignment_groups(plan: Plan) -> dict[str, list[str]]:
    """Return the spectrum keys of each group of aligned layers, by alignment key."""
    groups: dict[str, list[str]] = {}
    for shard in plan.shards:
        for tensor in aligned_tensors(shard):
            for view in tensor.views or (None,):
                for one in decompositions(tensor, view):
                    assert one.alignment_key is not None
                    groups.setdefault(one.alignment_key, []).append(one.spectrum_key)
    return groups


def missing_alignments(plan: Plan, store: Store) -> list[str]:
    """Return the alignment keys whose table is missing or damaged."""
    missing: list[str] = []
    for key in alignment_groups(plan):
        try:
            read_alignment(store, key)
        except (ObjectNotFoundError, CorruptObjectError):
            missing.append(key)
    return missing


def write_alignments(plan: Plan, store: Store, reports: Iterable[DecomposeReport]) -> None:
    """Write the table of every group.

    Parameters
    ----------
    reports : of all shards that have aligned tensors
    """
    largest_values = {key: value for report in reports for key, value in report.largest_values.items()}
    for key, spectra in alignment_groups(plan).items():
        values = {spectrum: float(largest_values[spectrum]) for spectrum in sorted(spectra)}
        write_sealed_json(store, key, {"format": FORMAT_VERSION, "key": key, "largest_values": values})


def read_alignment(store: Store, key: str) -> dict[str, float]:
    """Return the largest eigenvalue of each layer of a group, by spectrum key; 0 where all experts are zero.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, or the table of other layers
    """
    content = read_sealed_json(store, key)
    values = content.get("largest_values")
    if content.get("format") != FORMAT_VERSION or content.get("key") != key or not _is_numbers_by_key(values):
        raise CorruptObjectError(f"{store.display(key)} is not the table of these layers; run the same command again")
    return values


def _is_numbers_by_key(values: object) -> TypeGuard[dict[str, float]]:
    return isinstance(values, dict) and all(
        isinstance(value, float) for value in cast("dict[str, object]", values).values()
    )


class AlignedExpTimes:
    """Filter times of aligned layers. Every table is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: dict[str, dict[str, float]] = {}

    def exp_time(self, alignment_key: str, spectrum_key: str, exp_time: float, alignment_rho: float) -> float:
        """Return the filter time of one layer, where the recipe gives `exp_time`.

        Raises
        ------
        StoreError : the table was deleted after the run began
        """
        if alignment_key not in self._tables:
            try:
                self._tables[alignment_key] = read_alignment(self._store, alignment_key)
            except ObjectNotFoundError as error:
                raise StoreError(f"{error}; run the same command again") from None
        return align_exp_times(exp_time, self._tables[alignment_key], alignment_rho)[spectrum_key]
