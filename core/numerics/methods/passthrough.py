"""Passthrough: the tensor of one model, unchanged or scaled."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..elementwise.expert_inputs import EXPERT_TENSORS
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs


class PassthroughParameters(MethodParameters):
    pass


class PassthroughExpert(MethodParameters):
    scale: float | None = Field(None, description="factor on the tensor; without it the tensor is unchanged bit by bit")


class Passthrough(DirectMethod[PassthroughParameters, PassthroughExpert]):
    """scale * x, or x where no scale is given. Cost: one pass.

    References
    ----------
    mergekit 0.1.5
    """

    name = "passthrough"
    summary = "the tensors of one model, unchanged or scaled; with slices, layers of several models"
    source = "mergekit"
    Parameters = PassthroughParameters
    Expert = PassthroughExpert
    needs_base = False
    elementwise = True
    max_experts = 1

    def merge(
        self, inputs: TensorInputs, parameters: PassthroughParameters, experts: Sequence[PassthroughExpert]
    ) -> torch.Tensor:
        (tensor,) = inputs.experts()
        scale = experts[0].scale
        return tensor.clone() if scale is None else tensor * scale

    def peak_tensors(self, num_experts: int) -> float:
        return EXPERT_TENSORS + 1  # the result
