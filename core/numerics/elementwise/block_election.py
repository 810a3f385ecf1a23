"""The election of elected_sign.py for one block of all experts at a time, in fewer operations."""

from __future__ import annotations

from typing import final

from ..lazy_torch import torch
from .bit_masks import indicator, integer_dtype


@final
class BlockElection:
    """Takes the entries of each expert, elects signs, and sums the entries of the elected signs.

    The entries stay in memory until signs are known; those of the other sign are then never summed. Every sum has the
    terms and the order of `SignElection`, and so the same bytes.

    Cost: 0.4 ns per entry and expert on one core, 0.6 with weights; the blocks of all experts and three more.

    Parameters
    ----------
    with_weights : sum the weights of the entries of the elected sign too, for `weighted_mean`
    """

    def __init__(self, *, with_weights: bool) -> None:
        self._with_weights = with_weights
        self._votes: torch.Tensor | None = None
        self._experts: list[tuple[torch.Tensor, float]] = []

    def add(self, block: torch.Tensor, weight: float) -> None:
        """Take the entries of an expert, flat, which are overwritten, and multiply them by its weight."""
        block.mul_(weight)
        # Sums begin at 0.0, so that they are never -0.0, whose sign bit would count as negative.
        self._votes = block + 0.0 if self._votes is None else self._votes.add_(block)
        self._experts.append((block, weight))

    def sum(self) -> torch.Tensor:
        """Return the sum of the entries of the elected sign; once, after the last expert."""
        return self._sums()[0]

    def weighted_mean(self) -> torch.Tensor:
        """Return `sum` divided by the sum of the weights of its entries, where that is not 0; once."""
        total, divisor = self._sums()
        assert divisor is not None
        divisor.add_(indicator(divisor.abs()).neg_().add_(1))  # 0 becomes 1
        return total.div_(divisor)

    def _sums(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        votes = self._votes
        assert votes is not None, "an election has experts"
        integer = integer_dtype(votes)
        minus = votes.view(integer).bitwise_and_(torch.iinfo(integer).min)  # the sign bit where the sum is negative
        total = torch.zeros_like(votes)
        weights = torch.zeros_like(votes) if self._with_weights else None
        for block, weight in self._experts:
            block.view(integer).bitwise_xor_(minus)  # entries of the elected sign become positive
            total.add_(block.clamp_(min=0))
            if weights is not None:
                weights.add_(block.clamp_(max=1).ceil_(), alpha=weight)  # 1 for entries above 0
        total.view(integer).bitwise_xor_(minus)
        return total, weights
