"""Arcee Fusion: the entries of the other model where its change is most important, the base elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import NonFiniteError
from ..elementwise.blocks import block_elements
from ..elementwise.expert_inputs import EXPERT_TENSORS, check_other_count, other_experts, require_base
from ..lazy_torch import torch
from ..linear_algebra import TOO_LARGE
from ..method import DirectMethod, MethodParameters, TensorInputs

_TINY = 1e-8  # added to probabilities before their logarithm


class ArceeFusionParameters(MethodParameters):
    pass


class ArceeFusion(DirectMethod[ArceeFusionParameters, MethodParameters]):
    """Take an entry from the other model if its importance is at least median + 1.5 (q3 - q1), else from the base.

    importance = |other - base| * KL(softmax(other row) || softmax(base row)). Median and quartiles q1, q3 are those of
    all entries; mergekit estimates them from a random million entries of larger tensors.

    The divergence is computed in float64. For changes below 5e-4 it is smaller than the rounding of float32, in which
    mergekit computes it: its choice is arbitrary there.

    Cost: one pass; ten operations per entry and three selections of a quantile.

    References
    ----------
    mergekit 0.1.5
    """

    name = "arcee_fusion"
    summary = "the most important changes of one other model, the base elsewhere"
    source = "mergekit"
    algorithm_version = 2
    Parameters = ArceeFusionParameters
    Expert = MethodParameters
    max_experts = 2  # the other model, and the base where the recipe lists it
    other_experts = 1

    def merge(
        self, inputs: TensorInputs, parameters: ArceeFusionParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        """
        Raises
        ------
        RecipeError : there is no base, or not exactly one other model
        NonFiniteError : the importance overflows the arithmetic
        """
        base = require_base(inputs, self.name)
        check_other_count(inputs, self)
        ((_, other),) = other_experts(inputs)
        if base.numel() == 0:
            return base.clone()
        importance = _compute_importance(base, other)
        if not math.isfinite(float(importance.max())):
            raise NonFiniteError(f"{inputs.name}: {TOO_LARGE}")
        first, median, third = (_select_quantile(importance, fraction) for fraction in (0.25, 0.5, 0.75))
        return torch.where(importance >= median + 1.5 * (third - first), other, base)

    def peak_tensors(self, num_experts: int) -> float:
        return EXPERT_TENSORS + 4  # importance, its copy, and 64-bit indices (two tensors) while a quantile is selected


def _compute_importance(base: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the importance of every entry, in the shape of the inputs; rows run along the last dimension."""
    rows = base.reshape(-1, base.shape[-1] if base.ndim else 1)
    other_rows = other.reshape(rows.shape)
    importance = torch.empty_like(rows)
    step = max(1, block_elements(base.device) // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        new = torch.softmax(other_rows[part].double(), dim=1).add_(_TINY)
        old = torch.softmax(rows[part].double(), dim=1).add_(_TINY)
        divergence = (new * torch.log(new / old)).sum(dim=1, keepdim=True)
        importance[part] = (other_rows[part] - rows[part]).abs_().double().mul_(divergence)
    return importance.reshape(base.shape)


def _select_quantile(values: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return entry number floor(fraction (n - 1)) of the sorted values."""
    return torch.kthvalue(values.reshape(-1), int(fraction * (values.numel() - 1)) + 1).values
