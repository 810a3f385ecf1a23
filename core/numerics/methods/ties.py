"""TIES: trim each task vector to its largest entries, elect a sign for every entry, average what agrees."""

from __future__ import annotations

from pydantic import Field

from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import largest
from ..lazy_torch import torch


class TiesParameters(CombineParameters):
    normalize: bool = Field(True, description="divide each entry by the sum of the weights of the experts that agree")


class Ties(GeneralizedTaskArithmetic[TiesParameters, SparseExpert]):
    """Cost: one pass; about 15 operations an entry and expert, most of them to find the trimming threshold.

    References
    ----------
    TIES-Merging: Resolving Interference When Merging Models, arXiv:2306.01708
    """

    name = "ties"
    summary = "trim to the largest entries, elect a sign per entry, average what agrees with it"
    source = "arXiv:2306.01708"
    Parameters = TiesParameters
    Expert = SparseExpert
    order_matters = True  # where votes cancel, the elected sign is that of the rounded sum in the recipe's order
    elects_signs = True
    sorts_ties = True

    def keep(self, delta: torch.Tensor, expert: SparseExpert, generator: torch.Generator) -> torch.Tensor | None:
        return largest(delta, expert.density)
