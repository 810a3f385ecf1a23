"""TIES with mergekit's conventions: elect a sign for every entry and sum the entries of that sign, in one pass.

    sign_j = + if sum_i vote_ij >= 0 else -        merged_j = sum over {i: sign(x_ij) = sign_j} of x_ij

The elected sign is known only after the last expert. The sums of positive and of negative entries are kept separately,
and the merged entry is one of the two, so the experts are read once.

References
----------
TIES-Merging, arXiv:2306.01708, section 3; votes and divisors as in mergekit 0.1.5
"""

from __future__ import annotations

from ..lazy_torch import torch
from .bit_masks import choose_by_sign, indicator
from .blocks import blocks


class SignElection:
    """Running sums over the experts.

    Memory: three tensors of the size of `like`, five with `with_weights`, and a block.

    Parameters
    ----------
    like : Tensor of any shape; gives the shape, dtype and device of the result
    with_weights : sum the weights of the entries of each sign too, for `weighted_mean`
    """

    def __init__(self, like: torch.Tensor, *, with_weights: bool) -> None:
        def zeros() -> torch.Tensor:
            return torch.zeros(like.numel(), dtype=like.dtype, device=like.device)

        self._shape = like.shape
        self._votes, self._positive, self._negative = zeros(), zeros(), zeros()
        self._weights = (zeros(), zeros()) if with_weights else None  # of positive and of negative entries

    def add(self, span: slice, block: torch.Tensor, weight: float, *, weighted_vote: bool = True) -> None:
        """Add the entries `span` of an expert; `block` is overwritten.

        Parameters
        ----------
        span : slice of the flat tensor
        block : Tensor, flat, the entries
        weight : of the expert
        weighted_vote : True: the vote is weight * block; False: the block itself
        """
        if not weighted_vote:
            self._votes[span] += block
        # The product is rounded before it is added (no fused multiply-add), so that votes which cancel exactly give
        # the sign of the plain sum.
        block.mul_(weight)
        if weighted_vote:
            self._votes[span] += block
        positive, negative = block.clamp(min=0), block.clamp_(max=0)
        self._positive[span] += positive
        self._negative[span] += negative
        if self._weights is not None:
            positive_weight, negative_weight = self._weights
            positive_weight[span].add_(indicator(positive), alpha=weight)
            negative_weight[span].add_(indicator(negative.neg_()), alpha=weight)

    def sum(self) -> torch.Tensor:
        """Return the sum of the entries of the elected sign, in the shape of `like`. Do not add experts afterwards."""
        for span in blocks(self._votes):
            choose_by_sign(self._votes[span], self._positive[span], self._negative[span], self._positive[span])
        return self._positive.reshape(self._shape)

    def weighted_mean(self, min_weight: float | None = None) -> torch.Tensor:
        """Return `sum` divided by the sum of the weights of its entries. Do not add experts afterwards.

        Parameters
        ----------
        min_weight : lower bound of the divisor; None: a divisor of 0 becomes 1
        """
        assert self._weights is not None
        positive_weight, negative_weight = self._weights
        merged = self.sum()
        flat = merged.reshape(-1)
        for span in blocks(flat):
            divisor = positive_weight[span]
            choose_by_sign(self._votes[span], divisor, negative_weight[span], divisor)
            if min_weight is None:
                divisor.add_(indicator(divisor.abs()).neg_().add_(1))  # 0 becomes 1
            else:
                divisor.clamp_(min=min_weight)
            flat[span] /= divisor
        return merged
