"""DELLA: as DARE, with a higher probability of keeping the larger entries of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from ..elementwise.expert_inputs import expert_generator
from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import keep_by_rank_at_random
from ..lazy_torch import torch
from ..method import MethodParameters
from ..tensor_inputs import BlockwiseInputs

if TYPE_CHECKING:
    from ..elementwise.block_selection import BlockSelection

_LONGEST_ROW = 1 << 17  # entries: rows that are sorted in blocks


class DellaLinearParameters(CombineParameters):
    rescale: bool = Field(True, description="scale the kept entries of each task vector to its L1 norm before dropping")


class DellaParameters(DellaLinearParameters):
    normalize: bool = Field(True, description="divide each entry by the sum of the weights of the experts that agree")


class DellaExpert(SparseExpert):
    epsilon: float = Field(
        0.15,
        ge=0,
        description="the probability of keeping an entry rises from density - epsilon (smallest of its row) to"
        " density + epsilon (largest); both must be within (0, 1)",
    )

    @model_validator(mode="after")
    def _check_probabilities(self) -> DellaExpert:
        if 0 < self.density < 1 and not (self.density - self.epsilon > 0 and self.density + self.epsilon < 1):
            raise ValueError(
                f"density {self.density} with epsilon {self.epsilon} gives probabilities outside (0, 1);"
                f" expected epsilon below {min(self.density, 1 - self.density):.6g}"
            )
        return self


class DellaLinear(GeneralizedTaskArithmetic[DellaLinearParameters, DellaExpert]):
    """base + lambda sum_i weight_i r_i with r_i = m_i v_i ||v_i||_1 / ||m_i v_i||_1.

    The mask m_i keeps an entry with a probability that rises linearly with the rank of its magnitude in its row, from
    density - epsilon to density + epsilon.

    Cost: one pass; every row is sorted.

    References
    ----------
    DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling, arXiv:2406.11617
    """

    name = "della_linear"
    summary = "drop entries at random, small ones more often, rescale, sum"
    source = "arXiv:2406.11617"
    Parameters: ClassVar[type[MethodParameters]] = DellaLinearParameters
    Expert = DellaExpert
    order_matters = True  # the expert's index in the recipe seeds its mask
    elects_signs = False
    has_block_form = True

    def keep(self, delta: torch.Tensor, expert: DellaExpert, generator: torch.Generator) -> torch.Tensor | None:
        return keep_by_rank_at_random(delta, expert.density, expert.epsilon, generator)

    def block_selection(
        self, inputs: BlockwiseInputs, index: int, expert: DellaExpert, *, remember: bool
    ) -> BlockSelection:
        from ..elementwise.block_selection import KeepAll, KeepByRank, KeepNone
        from ..elementwise.rank_masks import RankMasks

        if expert.density >= 1:
            return KeepAll()
        if expert.density <= 0:
            return KeepNone()
        length = inputs.shape[1]
        masks = RankMasks(length, expert.density, expert.epsilon, expert_generator(inputs, index))
        return KeepByRank(inputs.num_elements, length, masks)

    def fits_blocks(self, shape: Sequence[int]) -> bool:
        return len(shape) == 2 and shape[1] <= _LONGEST_ROW

    def block_passes(self, parameters: DellaLinearParameters) -> int:
        return 2 + parameters.rescale


class Della(DellaLinear):
    """As DellaLinear, but each entry is the weighted mean of those r_i that have the sign of sum_i weight_i r_i."""

    name = "della"
    summary = "drop entries at random, small ones more often, rescale, elect a sign per entry, average what agrees"
    Parameters = DellaParameters
    elects_signs = True
