"""Linear: the weighted sum of the models, by default divided by the sum of the weights."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ...errors import RecipeError
from ..elementwise.expert_inputs import EXPERT_TENSORS, enumerate_tensors
from ..lazy_torch import torch
from ..method import DirectMethod, ExpertParameters, MethodParameters, TensorInputs


class LinearParameters(MethodParameters):
    normalize: bool = Field(True, description="divide by the sum of the weights")


class LinearExpert(ExpertParameters):
    weight: float = Field(1.0, description="factor on this model's tensor")


class Linear(DirectMethod[LinearParameters, LinearExpert]):
    """sum_i weight_i x_i, divided by sum_i weight_i with `normalize`.

    x_i are the models' full tensors. The base is one of the models where the recipe lists it.

    Cost: one pass, two operations per entry and model.

    References
    ----------
    Model soups, arXiv:2203.05482
    """

    name = "linear"
    summary = "weighted average of the models themselves"
    source = "arXiv:2203.05482"
    Parameters = LinearParameters
    Expert = LinearExpert
    needs_base = False
    elementwise = True

    def merge(
        self, inputs: TensorInputs, parameters: LinearParameters, experts: Sequence[LinearExpert]
    ) -> torch.Tensor:
        """
        Raises
        ------
        RecipeError : `normalize` is true and the weights sum to zero
        """
        total_weight = sum(expert.weight for expert in experts)
        if parameters.normalize and abs(total_weight) <= 1e-9 * sum(abs(expert.weight) for expert in experts):
            raise RecipeError(
                f"linear: the weights for tensor {inputs.name!r} sum to zero; give other weights, or set"
                " normalize: false"
            )
        total: torch.Tensor | None = None
        for index, tensor in enumerate_tensors(inputs.experts()):
            weight = experts[index].weight
            total = tensor * weight if total is None else total.add_(tensor, alpha=weight)
            del tensor
        assert total is not None
        return total.div_(total_weight) if parameters.normalize else total

    def peak_tensors(self, num_experts: int) -> float:
        return EXPERT_TENSORS + 1  # the sum
