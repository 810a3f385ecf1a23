"""TIES as KnOTS and Core Space use it: trim, elect a sign, average the entries of that sign.

It differs from elected_sign.py, which follows mergekit: one more entry is kept at the threshold, a vote of 0 takes the
sign of the majority of entries, and all entries of the mean have weight 1.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..lazy_torch import torch
from .sparsify import kth_largest_magnitude


def trim_elect_average(coordinates: Iterable[torch.Tensor], density: float) -> torch.Tensor:
    """Return the TIES merge of one matrix of coordinates per expert, in one pass.

    Cost: elementwise; four matrices besides the one that is being read.

    Parameters
    ----------
    coordinates : N tensors of one shape
    density : fraction of its entries that each expert keeps, those of largest magnitude

    Returns
    -------
    Tensor, of that shape

    References
    ----------
    TIES-Merging, arXiv:2306.01708; code: github.com/gstoica27/KnOTS, masking_ops.py (ties_masking, masked_merge)
    """
    positive = negative = num_positive = num_negative = None
    for entries in coordinates:
        trimmed = _trimmed(entries, density)
        if positive is None or negative is None or num_positive is None or num_negative is None:
            positive, negative, num_positive, num_negative = (torch.zeros_like(entries) for _ in range(4))
        positive += trimmed.clamp(min=0.0)
        negative += trimmed.clamp(max=0.0)
        num_positive += trimmed > 0
        num_negative += trimmed < 0
    assert positive is not None and negative is not None, "no coordinates given"
    assert num_positive is not None and num_negative is not None
    signs = (positive + negative).sign_()
    majority = signs.sum().sign()
    takes_positive = torch.where(signs == 0, majority, signs) > 0
    total = torch.where(takes_positive, positive, negative)
    return total / torch.where(takes_positive, num_positive, num_negative).clamp_min_(1.0)


def _trimmed(entries: torch.Tensor, density: float) -> torch.Tensor:
    if density >= 1.0 or entries.numel() == 0:
        return entries
    # The published code keeps all entries not below the (n - K)-th smallest: K + 1 entries.
    num_kept = min(int(entries.numel() * density) + 1, entries.numel())
    return torch.where(entries.abs() >= kth_largest_magnitude(entries, num_kept), entries, 0.0)
