"""What a report states about the spectra of one tensor, and of a tensor that consists of several matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache.reports import Origin
from ..numerics.interference.expert_probes import Measures, add_measures


@dataclass(frozen=True, slots=True)
class SpectralFacts:
    """What a report states about the spectra of one tensor.

    rank : directions that the filters kept
    energy : share of the sum of the eigenvalues in those directions, 0 to 1
    origin : "computed" if any spectrum was decomposed by this run
    spectrum_key : of the first matrix
    outputs : of the decomposition over the outputs, where the tensor is decomposed over both sides
    noise : level of the rounding of storage, relative to the largest singular value; None where none is known
    measures : of the experts; None where they are not measured
    svc_change : of the merged delta by SVC, relative (Frobenius norm); None without SVC
    """

    rank: int
    energy: float
    origin: Origin
    spectrum_key: str
    notes: tuple[str, ...] = ()
    outputs: SpectralFacts | None = None
    noise: float | None = None
    measures: Measures | None = None
    svc_change: float | None = None


def combine_facts(facts: Sequence[SpectralFacts]) -> SpectralFacts:
    """Return the facts of a tensor that consists of several matrices: the ranks add up, the smallest energy counts."""
    outputs = [one.outputs for one in facts if one.outputs is not None]
    measures = [one.measures for one in facts if one.measures is not None]
    return SpectralFacts(
        rank=sum(one.rank for one in facts),
        energy=min(one.energy for one in facts),
        origin="computed" if any(one.origin == "computed" for one in facts) else facts[-1].origin,
        spectrum_key=facts[0].spectrum_key,
        notes=tuple(note for one in facts for note in one.notes),
        outputs=combine_facts(outputs) if outputs else None,
        noise=max((one.noise for one in facts if one.noise is not None), default=None),
        measures=add_measures(measures) if len(measures) == len(facts) else None,
        svc_change=max((one.svc_change for one in facts if one.svc_change is not None), default=None),
    )
