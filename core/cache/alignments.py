"""Cross-layer alignment (SWUDI+): the largest eigenvalues of all aligned layers, as one small object of the store.

A first fan-out (`decompose_shard`) finds them, `gather_alignments` writes them under the plan's `alignment_key`, and
the merge of each layer reads them. The key is made of the spectra's keys: an object that exists is about these layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeGuard

from ..errors import CorruptObjectError, ObjectNotFoundError, StoreError
from ..numerics.interference.alignment import aligned_exp_times
from ..planning.plan import LayerShard, Plan, TensorPlan, spectrum_keys
from ..storage.store import Store
from .sealed_json import read_sealed_json, write_sealed_json

FORMAT_VERSION = 1


def aligned_tensors(shard: LayerShard) -> list[TensorPlan]:
    """The tensors of a shard whose filter depends on other layers."""
    return [tensor for tensor in shard.tensors if tensor.alignment_key is not None]


def groups(plan: Plan) -> dict[str, list[str]]:
    """Alignment key to the spectra of its layers."""
    found: dict[str, list[str]] = {}
    for shard in plan.shards:
        for tensor in aligned_tensors(shard):
            assert tensor.alignment_key is not None
            found.setdefault(tensor.alignment_key, []).extend(spectrum_keys(tensor))
    return found


def missing_alignments(plan: Plan, store: Store) -> list[str]:
    """The alignment keys whose object is not there, or damaged."""
    missing = []
    for key in groups(plan):
        try:
            read_alignment(store, key)
        except (ObjectNotFoundError, CorruptObjectError):
            missing.append(key)
    return missing


def gather_alignments(plan: Plan, store: Store, largest_values: Mapping[str, float]) -> None:
    """Write every group's object.

    Parameters
    ----------
    largest_values : spectrum key to its largest eigenvalue, 0 where all experts are zero; of all aligned layers
    """
    for key, spectra in groups(plan).items():
        values = {spectrum: float(largest_values[spectrum]) for spectrum in sorted(spectra)}
        write_sealed_json(store, key, {"format": FORMAT_VERSION, "key": key, "largest_values": values})


def read_alignment(store: Store, key: str) -> dict[str, float]:
    """Spectrum key to the largest eigenvalue.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, or that of other layers
    """
    content = read_sealed_json(store, key)
    values = content.get("largest_values")
    if content.get("format") != FORMAT_VERSION or content.get("key") != key or not _are_numbers(values):
        raise CorruptObjectError(f"{store.display(key)} is not the table of these layers; run the same command again")
    return values


def _are_numbers(values: object) -> TypeGuard[dict[str, float]]:
    return isinstance(values, dict) and all(isinstance(value, float) for value in values.values())


class Alignments:
    """Filter times of aligned layers; each object is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, dict[str, float]] = {}

    def exp_time(self, alignment_key: str, spectrum_key: str, exp_time: float, alignment_rho: float) -> float:
        """t of this layer, where the recipe says `exp_time`.

        Raises
        ------
        StoreError : the object went away since the run began
        """
        if alignment_key not in self._known:
            try:
                self._known[alignment_key] = read_alignment(self._store, alignment_key)
            except ObjectNotFoundError as error:
                raise StoreError(f"{error}; run the same command again") from None
        return aligned_exp_times(exp_time, self._known[alignment_key], alignment_rho)[spectrum_key]


def largest_of(reports: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The reports' values in one mapping."""
    return {key: value for report in reports for key, value in report.items()}
