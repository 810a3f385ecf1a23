"""The space that the leading singular directions of all experts cover, and the TIES merge of the experts in it.

Shapes: M = out features, K = in features, N = experts, r_i = directions of expert i, P = sum of the r_i.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..elementwise.sparsify import kth_largest_magnitude
from ..lazy_torch import torch
from .compact_svd import CompactSVD, polar_decomposition

#: Entries below this fraction of a matrix's largest one are the rounding of float32 experts. They are no votes, and
#: magnitudes that differ by less are equal: a result must not depend on the rounding of an entry that should be 0.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class CoverSpace:
    """Orthonormal directions for the columns and rows of all experts, closest to their own leading ones.

    left : Tensor, (P, M), polar factor of the left singular vectors u of all experts, one expert after the other
    right : Tensor, (P, K), the same of the right ones v
    left_coordinates : Tensor, (P, P), float64, row k has the coordinates of the k-th u
    right_coordinates : Tensor, (P, P), float64, the same of the v
    values : the value of each direction, one tensor (r_i,) for each expert
    """

    left: torch.Tensor
    right: torch.Tensor
    left_coordinates: torch.Tensor
    right_coordinates: torch.Tensor
    values: Sequence[torch.Tensor]

    @property
    def blocks(self) -> list[slice]:
        """The directions of each expert."""
        found: list[slice] = []
        for values in self.values:
            start = found[-1].stop if found else 0
            found.append(slice(start, start + len(values)))
        return found

    def projections(self) -> Iterator[torch.Tensor]:
        """Yield each expert in the space, sum_k values_k (left u_k) (right v_k)^T over its directions, (P, P)."""
        for block, values in zip(self.blocks, self.values, strict=True):
            yield (self.left_coordinates[block].T * values.double()) @ self.right_coordinates[block]


def cover_space(experts: Sequence[CompactSVD], values: Sequence[torch.Tensor]) -> CoverSpace:
    """Return the space that the triplets of the experts cover; `values` are used in place of their singular values.

    Linearly dependent directions are shared, as in `polar_rows`.

    Cost: two polar factors of P rows, 4 P^2 (M + K) + 22 P^3 flops in float64.
    """
    left, left_coordinates = polar_decomposition(torch.cat([expert.left for expert in experts]))
    right, right_coordinates = polar_decomposition(torch.cat([expert.right for expert in experts]))
    return CoverSpace(left, right, left_coordinates, right_coordinates, values)


def trimmed_consensus(matrices: Iterable[torch.Tensor], num_kept: int) -> torch.Tensor:
    """Return the TIES merge: each matrix keeps its largest entries, and the mean of those with the sign of their sum.

    Unlike `trim_elect_average`, an entry whose sum is 0 is 0, and all entries tied with the smallest kept one are kept.

    Cost: elementwise, one pass; four matrices besides the one that is being read.

    Parameters
    ----------
    matrices : one for each expert, all of one shape, float64
    num_kept : entries that each keeps, 1 or more

    Returns
    -------
    Tensor, of that shape
    """
    positive = negative = num_positive = num_negative = None
    for matrix in matrices:
        kept = _largest(matrix, num_kept)
        if positive is None or negative is None or num_positive is None or num_negative is None:
            positive, negative = torch.zeros_like(kept), torch.zeros_like(kept)
            num_positive, num_negative = (torch.zeros_like(kept, dtype=torch.int32) for _ in range(2))
        num_positive += kept > 0
        num_negative += kept < 0
        positive += kept.clamp(min=0.0)
        negative += kept.clamp_(max=0.0)
    assert positive is not None and negative is not None, "no matrices given"
    assert num_positive is not None and num_negative is not None
    votes = positive + negative
    votes.masked_fill_(votes.abs() <= ROUNDING * (positive - negative), 0.0)
    positive.div_(num_positive.clamp_min_(1)).masked_fill_(votes <= 0, 0.0)
    negative.div_(num_negative.clamp_min_(1)).masked_fill_(votes >= 0, 0.0)
    return positive.add_(negative)


def _largest(matrix: torch.Tensor, num_kept: int) -> torch.Tensor:
    """Return the matrix with all but its largest entries set to 0."""
    if matrix.numel() == 0:
        return matrix
    magnitudes = matrix.abs()
    limit = ROUNDING * float(magnitudes.max())
    if num_kept < matrix.numel():
        limit = max(limit, kth_largest_magnitude(matrix, num_kept) * (1.0 - ROUNDING))
    return torch.where(magnitudes >= limit, matrix, 0.0)
