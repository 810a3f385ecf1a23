"""DELLA: as DARE, but the larger an entry is within its row, the likelier it is kept."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import by_rank_at_random
from ..lazy_torch import torch
from ..method import MethodParameters


class DellaLinearParameters(CombineParameters):
    rescale: bool = Field(True, description="scale what is left of each task vector to the L1 norm of the whole")


class DellaParameters(DellaLinearParameters):
    normalize: bool = Field(True, description="divide each entry by the sum of the weights of the experts that agree")


class DellaExpert(SparseExpert):
    epsilon: float = Field(
        0.15, ge=0, description="half the range of the probabilities: density - epsilon to density + epsilon by rank"
    )

    @model_validator(mode="after")
    def _probabilities_are_probabilities(self) -> DellaExpert:
        if 0 < self.density < 1 and not (self.density - self.epsilon > 0 and self.density + self.epsilon < 1):
            raise ValueError(
                f"density {self.density} with epsilon {self.epsilon} gives probabilities outside (0, 1);"
                f" expected epsilon below {min(self.density, 1 - self.density):.6g}"
            )
        return self


class DellaLinear(GeneralizedTaskArithmetic[DellaLinearParameters, DellaExpert]):
    """Cost: one pass; a sort of every row.

    References
    ----------
    DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling, arXiv:2406.11617
    """

    name = "della_linear"
    summary = "drop entries at random, small ones more often, rescale, sum"
    source = "arXiv:2406.11617"
    Parameters: ClassVar[type[MethodParameters]] = DellaLinearParameters
    Expert = DellaExpert
    order_matters = True  # each expert's place in the recipe seeds what is dropped of it
    elects_signs = False

    def keep(self, delta: torch.Tensor, expert: DellaExpert, generator: torch.Generator) -> torch.Tensor | None:
        return by_rank_at_random(delta, expert.density, expert.epsilon, generator)


class Della(DellaLinear):
    name = "della"
    summary = "drop entries at random, small ones more often, rescale, elect a sign per entry, average what agrees"
    Parameters = DellaParameters
    elects_signs = True
