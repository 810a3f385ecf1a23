"""Which directions of an interference spectrum `spectra: top` keeps, and the filtered delta from these alone.

The sum S of the experts has the anchor's part of every direction. With a = the factor of S q_k on the last direction
(the anchor, where the filter is 0), and m = the number of kept directions,

    sum_k (g_k D q_k + h_k S q_k) q_k^T = a S + sum_{k < m} (g_k D q_k + (h_k - a) S q_k) q_k^T + E
    |E|_F^2 <= sum_{k >= m} (|g_k| |D q_k| + |h_k - a| |S q_k|)^2

Eigenvalues and energies of all R directions are kept, so the factors and this bound are known before a vector is read.
E is 0 where the filter is 0 from direction m on.

Shapes: M = out features (D1), K = in features (D2), R = directions of the spectrum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..apply_filter import Factors
from ..lazy_torch import torch
from ..spectrum import Spectrum

#: Part of the keys: increase it when the kept directions or the tolerance change.
VERSION = 1
#: Share of the sum of the eigenvalues that the kept directions hold, within the two limits below.
ENERGY = 0.999
#: Directions that are kept whatever they hold. A matrix with no more of them is kept whole.
LEAST_DIRECTIONS = 256
#: At most one of this many directions is kept, so that the size is known from the shape.
COLUMNS_PER_DIRECTION = 16
#: Largest |E|_F relative to the merged delta. Rounding in float32 is of this size (docs/numerics.md).
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class TopFactors:
    """Factors on the kept directions and on the sum of the experts.

    factors : (m,) for each block
    anchor : a, the factor on S
    error : upper bound of |E|_F, relative to the merged delta
    """

    factors: Factors
    anchor: float
    error: float


def most_directions(columns: int) -> int:
    """Return the largest number of directions that are kept of a matrix of K columns."""
    return max(LEAST_DIRECTIONS, columns // COLUMNS_PER_DIRECTION)


def count_kept(values: torch.Tensor, columns: int) -> int:
    """Return m, from all eigenvalues, (R,), descending."""
    held = values.cpu().double().cumsum(0)
    enough = int((held < ENERGY * held[-1]).sum()) + 1 if len(held) else 0
    return min(len(values), max(LEAST_DIRECTIONS, min(enough, most_directions(columns))))


def factors_around_anchor(head: Spectrum, factors: Factors, kept: int) -> TopFactors:
    """Return the factors on the first `kept` directions and on S, and the error that the others add.

    The norm that the error is relative to is bounded from below: |h S q + g D q| >= | |h| |S q| - |g| |D q| |.

    Parameters
    ----------
    head : Spectrum with values and statistics of all R directions; its vectors are not used
    factors : of all directions
    """
    count = head.num_directions
    none = torch.zeros(count, dtype=torch.float64)
    target, total = (factors.weights.get(name, none).cpu().double() for name in ("target", "sum"))
    if kept >= count:
        return TopFactors(factors, 0.0, 0.0)
    anchor = float(total[-1])
    around = total - anchor
    of_target, of_total = (head.statistics[name].cpu().double().sqrt() for name in ("target_energy", "sum_energy"))
    tail = slice(kept, None)
    left_out = target[tail].abs() * of_target[tail] + around[tail].abs() * of_total[tail]
    norm = math.sqrt(float((total.abs() * of_total - target.abs() * of_target).square().sum()))
    error = math.sqrt(float(left_out.square().sum()))
    device = head.values.device
    weights = {name: weight[:kept].to(device) for name, weight in (("target", target), ("sum", around))}
    relative = 0.0 if error == 0.0 else error / norm if norm > 0 else math.inf
    return TopFactors(Factors(weights, factors.rank), anchor, relative)
