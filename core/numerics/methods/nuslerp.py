"""NuSLERP: spherical interpolation between two models, or between their task vectors, by relative weight."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..elementwise.blocks import blockwise_norm, inner_product
from ..elementwise.expert_inputs import TASK_VECTOR_TENSORS, check_other_count, vectors_to_interpolate
from ..lazy_torch import torch
from ..linear_algebra import vector_norms
from ..method import DirectMethod, ExpertParameters, MethodParameters, TensorInputs

_TINY = 1e-7  # lower bound of norms in denominators
_COLLINEAR = 1e-16  # squared sine up to which the interpolation is linear


class NuslerpParameters(MethodParameters):
    nuslerp_flatten: bool = Field(True, description="one angle for the whole tensor instead of one per row or column")
    nuslerp_row_wise: bool = Field(
        False, description="without nuslerp_flatten: vectors along the first dimension instead of the last"
    )


class Nuslerp(DirectMethod[NuslerpParameters, ExpertParameters]):
    """(sin((1-t) a) x_0 + sin(t a) x_1) / sin a, where t = weight_1 / (weight_0 + weight_1) and a is their angle.

    x_0 and x_1 are task vectors where the recipe has a base (which is then added), else the models' tensors.

    Cost: one pass; both vectors and the base are in memory.

    References
    ----------
    mergekit 0.1.5
    """

    name = "nuslerp"
    summary = "spherical interpolation between two models or two task vectors"
    source = "mergekit"
    Parameters = NuslerpParameters
    Expert = ExpertParameters
    needs_base = False
    min_experts = 2
    max_experts = 3  # the two, and the base where the recipe lists it
    other_experts = 2

    def merge(
        self, inputs: TensorInputs, parameters: NuslerpParameters, experts: Sequence[ExpertParameters]
    ) -> torch.Tensor:
        """
        Raises
        ------
        RecipeError : there are not exactly two models beside the base
        """
        check_other_count(inputs, self)
        (first, start), (second, end) = vectors_to_interpolate(inputs)
        total = experts[first].weight + experts[second].weight
        t = 0.5 if abs(total) < 1e-6 else experts[second].weight / total
        if parameters.nuslerp_flatten:
            merged = _interpolate(t, start, end, self._compute_cosine(start, end))
        else:
            dim = 0 if parameters.nuslerp_row_wise else -1
            norms = [vector_norms(x, dim, keepdim=True).clamp_(min=_TINY) for x in (start, end)]
            merged = _interpolate(t, start, end, ((start / norms[0]) * (end / norms[1])).sum(dim=dim, keepdim=True))
        return merged if inputs.base is None else merged.add_(inputs.base)

    @staticmethod
    def _compute_cosine(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        cosine = inner_product(start, end) / (max(blockwise_norm(start), _TINY) * max(blockwise_norm(end), _TINY))
        return torch.tensor(cosine, dtype=start.dtype, device=start.device)

    def peak_tensors(self, num_experts: int) -> float:
        return TASK_VECTOR_TENSORS + 2  # the second vector, and the result with its second term


def _interpolate(t: float, start: torch.Tensor, end: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    """Return (sin((1-t) a) start + sin(t a) end) / sin a, where cos a = `cosine`, broadcast against both tensors."""
    cosine = cosine.clamp(-1, 1)
    collinear = 1 - cosine.square() <= _COLLINEAR
    angle = torch.acos(cosine.masked_fill(collinear, 0))
    start_factor = torch.where(collinear, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    end_factor = torch.where(collinear, t, torch.sin(t * angle) / torch.sin(angle))
    return (start * start_factor).add_(end * end_factor)
