"""Multi-SLERP: the weighted mean direction of several models or task vectors, at their weighted mean norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from ...errors import RecipeError
from ..elementwise.blocks import blockwise_norm
from ..elementwise.expert_inputs import TASK_VECTOR_TENSORS, other_experts, other_indices, vectors_to_interpolate
from ..lazy_torch import torch
from ..method import DirectMethod, ExpertParameters, MethodParameters, TensorInputs


class MultislerpParameters(MethodParameters):
    normalize_weights: bool = Field(True, description="divide the weights by their sum")
    eps: float = Field(
        1e-8, gt=0, description="added to norms in denominators; a mean direction with a smaller norm counts as zero"
    )


class Multislerp(DirectMethod[MultislerpParameters, ExpertParameters]):
    """m / ||m|| * sum_i weight_i ||v_i||, where m = sum_i weight_i v_i / ||v_i||.

    v_i is the task vector where the recipe has a base, else the model's tensor. mergekit adds a step in the tangent
    space of the sphere at m / ||m||. That step is the projection of m onto the tangent space, which is zero up to
    rounding; it is left out here, so one pass with one sum is enough.

    Cost: one pass, six operations per entry and expert.

    References
    ----------
    mergekit 0.1.5; https://goddard.blog/posts/multislerp-wow-what-a-cool-idea
    """

    name = "multislerp"
    summary = "mean direction of several models or task vectors, at their mean norm"
    source = "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea"
    Parameters = MultislerpParameters
    Expert = ExpertParameters
    needs_base = False
    passes = 1  # a second one where two opposite vectors cancel

    def merge(
        self, inputs: TensorInputs, parameters: MultislerpParameters, experts: Sequence[ExpertParameters]
    ) -> torch.Tensor:
        """
        Raises
        ------
        RecipeError : `normalize_weights` is true and the weights sum to zero, or more than two directions cancel
        """
        indices = other_indices(inputs)
        if not indices:  # every model is the base
            assert inputs.base is not None
            return inputs.base.clone()
        if len(indices) == 1:
            ((_, expert),) = other_experts(inputs)
            return expert.clone()
        weights = _normalize_weights(inputs, parameters, {index: experts[index].weight for index in indices})
        mean: torch.Tensor | None = None
        mean_length = 0.0
        for index, vector in vectors_to_interpolate(inputs):
            length = blockwise_norm(vector)
            factor = weights[index] / (length + parameters.eps)
            mean = vector * factor if mean is None else mean.add_(vector, alpha=factor)
            mean_length += weights[index] * length
            del vector
        assert mean is not None
        mean_norm = blockwise_norm(mean)
        if mean_norm >= parameters.eps:
            # mergekit rotates by eps even for a zero tangent step, which multiplies the result by cos(eps).
            mean.mul_(mean_length * math.cos(parameters.eps) / mean_norm)
        elif len(indices) == 2:
            mean.zero_()  # opposite vectors have no mean direction: interpolate linearly
            for index, vector in vectors_to_interpolate(inputs):
                mean.add_(vector, alpha=weights[index])
                del vector
        elif mean_length == 0:
            mean.zero_()  # all vectors are zero
        else:
            raise RecipeError(
                f"multislerp: the {len(indices)} weighted directions cancel for tensor {inputs.name!r} and have no mean"
                " direction; give other weights"
            )
        return mean if inputs.base is None else mean.add_(inputs.base)

    def peak_tensors(self, num_experts: int) -> float:
        return TASK_VECTOR_TENSORS + 1  # the mean


def _normalize_weights(
    inputs: TensorInputs, parameters: MultislerpParameters, weights: dict[int, float]
) -> dict[int, float]:
    if not parameters.normalize_weights:
        return weights
    total = sum(weights.values())
    if abs(total) <= 1e-9 * sum(map(abs, weights.values())):
        raise RecipeError(
            f"multislerp: the weights for tensor {inputs.name!r} sum to zero; give other weights, or set"
            " normalize_weights: false"
        )
    return {index: weight / total for index, weight in weights.items()}
