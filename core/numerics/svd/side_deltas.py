"""The merged delta of a weight from its decompositions over inputs and outputs.

    merged delta = sum over sides of share * delta,   delta over the outputs = (delta of the transposed task vectors)^T

Shapes: M = out features (D1), K = in features (D2), R = number of directions of one side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..apply_filter import Factors, apply_factors, low_rank_form
from ..lazy_torch import torch
from ..method import Side
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors, transpose
from .delta_sum import DeltaSum
from .svc import svc_decompose, svc_of_filtered

# One side with the spectrum of its decomposition and the factors of its filter.
FilteredSide = tuple[Side, Spectrum, Factors]


def add_sides(
    sides: Sequence[Side], filtered: Iterable[FilteredSide], shape: tuple[int, int]
) -> torch.Tensor | LowRank:
    """Return the merged delta: the factors of a single side, or the sum of several.

    Cost: 2 R M K flops per side; of several sides one spectrum at a time is in memory, with M K elements of their sum.

    Parameters
    ----------
    sides : of the weight
    filtered : the same sides with their spectra; each is taken when the one before has been added
    shape : (M, K)

    Returns
    -------
    LowRank for a single side without an anchor; for several, LowRank while their stacked factors are smaller than the
    matrix; else Tensor
    """
    total = DeltaSum(shape)
    for side, spectrum, factors in filtered:
        if factors.anchor is None:
            delta: torch.Tensor | LowRank = LowRank(*low_rank_form(spectrum, factors))
        else:
            delta = apply_factors(spectrum, factors)
        del spectrum, factors  # bound names would keep them in memory while the next side is decomposed
        oriented = transpose(delta) if side.over_outputs else delta
        if len(sides) == 1:
            return oriented
        total.add(oriented, side.share)
        del delta, oriented
    return total.total()


def svc_of_sides(
    sides: Sequence[Side], filtered: Iterable[FilteredSide], shape: tuple[int, int], task_vectors: TaskVectors
) -> Spectrum:
    """Return `svc_decompose` of the merged delta of all sides: SVC calibrates their sum, not each of them.

    Parameters
    ----------
    task_vectors : TaskVectors, (M, K), not transposed: SVC compares responses of outputs, whatever the side
    """
    if tuple(sides) == (Side(),):
        ((_, spectrum, factors),) = filtered
        return svc_of_filtered(spectrum, factors, task_vectors)
    delta = add_sides(sides, filtered, shape)
    if isinstance(delta, LowRank) and delta.rank * sum(shape) >= shape[0] * shape[1]:
        delta = delta.dense()
    return svc_decompose(delta, task_vectors)
