"""SLERP: spherical interpolation between the base and one other model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from ..elementwise.blocks import blockwise_norm, inner_product
from ..elementwise.expert_inputs import EXPERT_TENSORS, check_other_count, other_experts, require_base
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs

_COLLINEAR = 0.9995  # cosine above which the interpolation is linear, as in mergekit
_TINY = 1e-8  # norms up to this are replaced by 1


class SlerpParameters(MethodParameters):
    t: float = Field(description="position between the base (0) and the other model (1)")


class Slerp(DirectMethod[SlerpParameters, MethodParameters]):
    """(sin((1-t) a) x_0 + sin(t a) x_1) / sin a, where a is the angle between base x_0 and other model x_1.

    Linear interpolation where |cos a| > 0.9995.

    Cost: one pass; both models and the base are in memory.

    References
    ----------
    mergekit 0.1.5; Shoemake, Animating rotation with quaternion curves, doi:10.1145/325165.325242
    """

    name = "slerp"
    summary = "spherical interpolation between the base and one other model"
    source = "doi:10.1145/325165.325242"
    Parameters = SlerpParameters
    Expert = MethodParameters
    max_experts = 2  # the other model, and the base where the recipe lists it
    other_experts = 1

    def merge(
        self, inputs: TensorInputs, parameters: SlerpParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        """
        Raises
        ------
        RecipeError : there is no base, or not exactly one other model
        """
        base = require_base(inputs, self.name)
        check_other_count(inputs, self)
        t = parameters.t
        ((_, other),) = other_experts(inputs)
        norms = [value if value > _TINY else 1.0 for value in (blockwise_norm(base), blockwise_norm(other))]
        cosine = min(1.0, max(-1.0, inner_product(base, other) / (norms[0] * norms[1])))
        if abs(cosine) > _COLLINEAR:
            base_factor, other_factor = 1 - t, t
        else:
            angle = math.acos(cosine)
            base_factor, other_factor = (math.sin(share * angle) / math.sin(angle) for share in (1 - t, t))
        return (base * base_factor).add_(other, alpha=other_factor)

    def peak_tensors(self, num_experts: int) -> float:
        return EXPERT_TENSORS + 1  # the result
