"""Passthrough: one model's tensor as it is, or times a number."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..elementwise.expert_inputs import EXPERT_TENSORS
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs


class PassthroughParameters(MethodParameters):
    pass


class PassthroughExpert(MethodParameters):
    scale: float | None = Field(None, description="factor on the tensor; none leaves every bit as it is")


class Passthrough(DirectMethod[PassthroughParameters, PassthroughExpert]):
    """Cost: one pass.

    References
    ----------
    mergekit 0.1.5
    """

    name = "passthrough"
    summary = "one model's tensors unchanged, or scaled; with slices it stacks layers of several models"
    source = "mergekit"
    Parameters = PassthroughParameters
    Expert = PassthroughExpert
    needs_base = False
    max_experts = 1

    def merge(
        self, inputs: TensorInputs, parameters: PassthroughParameters, experts: Sequence[PassthroughExpert]
    ) -> torch.Tensor:
        (tensor,) = inputs.experts()
        scale = experts[0].scale
        return tensor.clone() if scale is None else tensor * scale

    def peak_tensors(self, num_experts: int) -> float:
        return EXPERT_TENSORS + 1  # the result
