"""NearSwap: the base moved towards one other model, each entry by at most t."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..elementwise.blocks import blocks
from ..elementwise.expert_inputs import EXPERT_TENSORS, check_other_count, other_experts, require_base
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs


class NearswapParameters(MethodParameters):
    t: float = Field(
        description="largest change of an entry, 0 or more; entries closer to the other model than t take its value"
    )


class Nearswap(DirectMethod[NearswapParameters, MethodParameters]):
    """base + min(1, t / |other - base|) (other - base) for every entry.

    Cost: one pass, eight operations per entry.

    References
    ----------
    https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001; mergekit 0.1.5
    """

    name = "nearswap"
    summary = "the base moved towards one other model, each entry by at most t"
    source = "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    Parameters = NearswapParameters
    Expert = MethodParameters
    max_experts = 2  # the other model, and the base where the recipe lists it
    other_experts = 1
    elementwise = True

    def merge(
        self, inputs: TensorInputs, parameters: NearswapParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        """
        Raises
        ------
        RecipeError : there is no base, or not exactly one other model
        """
        base = require_base(inputs, self.name)
        check_other_count(inputs, self)
        ((_, other),) = other_experts(inputs)
        merged = torch.empty(base.numel(), dtype=base.dtype, device=base.device)
        flat_base, flat_other = base.reshape(-1), other.reshape(-1)
        for span in blocks(flat_base):
            start, end = flat_base[span], flat_other[span]
            share = (parameters.t / (start - end).abs_().clamp_(min=1e-6)).clamp_(min=0, max=1)
            torch.lerp(start, end, share, out=merged[span])
        return merged.reshape(base.shape)

    def peak_tensors(self, num_experts: int) -> float:
        return EXPERT_TENSORS + 1  # the result
