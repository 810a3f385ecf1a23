"""DARE: drop entries of each task vector at random and rescale the rest; plain sum or TIES' elected signs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from ..elementwise.expert_inputs import expert_generator
from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import keep_at_random
from ..lazy_torch import torch
from ..tensor_inputs import BlockwiseInputs

if TYPE_CHECKING:
    from ..elementwise.block_selection import BlockSelection


class DareParameters(CombineParameters):
    rescale: bool = Field(True, description="scale the kept entries of each task vector to its L1 norm before dropping")


class DareLinear(GeneralizedTaskArithmetic[DareParameters, SparseExpert]):
    """base + lambda sum_i weight_i r_i with r_i = m_i v_i ||v_i||_1 / ||m_i v_i||_1.

    The mask m_i is 1 with probability `density`, independently for every entry.

    Cost: one pass; one random number per entry and expert (4 ns each on one core).

    References
    ----------
    Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch, arXiv:2311.03099
    """

    name = "dare_linear"
    summary = "drop entries of each task vector at random, rescale, sum"
    source = "arXiv:2311.03099"
    Parameters = DareParameters
    Expert = SparseExpert
    order_matters = True  # the expert's index in the recipe seeds its mask
    elects_signs = False
    has_block_form = True

    def keep(self, delta: torch.Tensor, expert: SparseExpert, generator: torch.Generator) -> torch.Tensor | None:
        return keep_at_random(delta, expert.density, generator)

    def block_selection(
        self, inputs: BlockwiseInputs, index: int, expert: SparseExpert, *, remember: bool
    ) -> BlockSelection:
        from ..elementwise.block_selection import KeepAll, KeepAtRandom

        if expert.density >= 1:
            return KeepAll()
        return KeepAtRandom(expert.density, partial(expert_generator, inputs, index), remember=remember)


class DareTies(DareLinear):
    """As DareLinear, but only those weight_i r_i are added that have the sign of sum_i weight_i r_i."""

    name = "dare_ties"
    summary = "drop entries of each task vector at random, rescale, elect a sign per entry, sum what agrees"
    elects_signs = True
