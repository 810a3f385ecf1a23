"""DARE: drop entries of each task vector at random and rescale the rest; plain sum or TIES' elected signs."""

from __future__ import annotations

from pydantic import Field

from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import at_random
from ..lazy_torch import torch


class DareParameters(CombineParameters):
    rescale: bool = Field(True, description="scale what is left of each task vector to the L1 norm of the whole")


class DareLinear(GeneralizedTaskArithmetic[DareParameters, SparseExpert]):
    """Cost: one pass; a random number an entry and expert (4 ns each on one core).

    References
    ----------
    Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch, arXiv:2311.03099
    """

    name = "dare_linear"
    summary = "drop entries of each task vector at random, rescale, sum"
    source = "arXiv:2311.03099"
    Parameters = DareParameters
    Expert = SparseExpert
    order_matters = True  # each expert's place in the recipe seeds what is dropped of it
    elects_signs = False

    def keep(self, delta: torch.Tensor, expert: SparseExpert, generator: torch.Generator) -> torch.Tensor | None:
        return at_random(delta, expert.density, generator)


class DareTies(DareLinear):
    name = "dare_ties"
    summary = "drop entries of each task vector at random, rescale, elect a sign per entry, sum what agrees"
    elects_signs = True
