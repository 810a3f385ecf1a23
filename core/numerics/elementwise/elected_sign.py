"""Elect a sign for every entry, then sum only what agrees with it: TIES as mergekit has it, one expert at a time.

    sign_j = + if sum_i vote_ij >= 0 else -        merged_j = sum over {i: sign(x_ij) = sign_j} of x_ij

The elected sign is known only after the last expert. Keeping the positive and the negative sums apart makes a second
reading of the experts unnecessary: the merged entry is the one or the other.

References
----------
TIES-Merging, arXiv:2306.01708, section 3; votes and divisors as in mergekit 0.1.5
"""

from __future__ import annotations

from ..lazy_torch import torch
from .blocks import blocks


class SignElection:
    """Running sums over the experts, all flat, of the dtype and on the device of `like`.

    Memory: three tensors, five with `with_weights`; a block beside them.

    Parameters
    ----------
    like : Tensor of the merged tensor's shape
    with_weights : keep the sums of the agreeing weights too, for `weighted_mean`
    """

    def __init__(self, like: torch.Tensor, *, with_weights: bool) -> None:
        def zeros() -> torch.Tensor:
            return torch.zeros(like.numel(), dtype=like.dtype, device=like.device)

        self._shape = like.shape
        self._votes, self._positive, self._negative = zeros(), zeros(), zeros()
        self._weights = (zeros(), zeros()) if with_weights else None  # of positive and of negative entries

    def add(self, span: slice, block: torch.Tensor, weight: float, *, weighted_vote: bool = True) -> None:
        """Add an expert's block; `block` is overwritten. The vote is weight * block, or the block itself."""
        if not weighted_vote:
            self._votes[span] += block
        # The product is rounded before it is added (no fused multiply-add): where votes cancel to the last bit, the
        # sign is then the one that the plain sum gives.
        block.mul_(weight)
        if weighted_vote:
            self._votes[span] += block
        self._positive[span] += block.clamp(min=0)
        self._negative[span] += block.clamp(max=0)
        if self._weights is not None:
            positive_weight, negative_weight = self._weights
            positive_weight[span].add_(block > 0, alpha=weight)
            negative_weight[span].add_(block < 0, alpha=weight)

    def sum(self) -> torch.Tensor:
        """The agreeing entries' sum, in the shape of `like`. Ends the election: nothing can be added afterwards."""
        for span in blocks(self._votes):
            torch.where(self._votes[span] >= 0, self._positive[span], self._negative[span], out=self._positive[span])
        return self._positive.reshape(self._shape)

    def weighted_mean(self, min_weight: float | None = None) -> torch.Tensor:
        """The agreeing entries' sum over the sum of their weights. Ends the election.

        Parameters
        ----------
        min_weight : lower bound of the divisor; None: a divisor of exactly zero becomes one
        """
        assert self._weights is not None
        positive_weight, negative_weight = self._weights
        merged = self.sum()
        flat = merged.reshape(-1)
        for span in blocks(flat):
            divisor = torch.where(self._votes[span] >= 0, positive_weight[span], negative_weight[span])
            if min_weight is None:
                divisor.masked_fill_(divisor == 0, 1)
            else:
                divisor.clamp_(min=min_weight)
            flat[span] /= divisor
        return merged
