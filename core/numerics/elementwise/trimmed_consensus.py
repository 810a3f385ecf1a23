"""The TIES merge as DC-Merge has it: of matrices, without a weight for each, and the same for equal magnitudes."""

from __future__ import annotations

from collections.abc import Iterable

from ..lazy_torch import torch
from .sparsify import kth_largest_magnitude

#: Entries below this fraction of a matrix's largest one are the rounding of float32 experts. They are no votes, and
#: magnitudes that differ by less are equal: a result must not depend on the rounding of an entry that should be 0.
ROUNDING = 1e-6


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
