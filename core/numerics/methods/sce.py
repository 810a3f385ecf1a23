"""SCE: select the entries that vary most between experts, weight experts by energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..elementwise.blocks import blocks, inner_product
from ..elementwise.elected_sign import SignElection
from ..elementwise.expert_inputs import TASK_VECTOR_TENSORS, other_task_vectors, require_base
from ..elementwise.sparsify import Selection, keep_largest_values
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs

_TINY = 1e-6  # as in mergekit: total energy below which weights are equal; lower bound of a denominator


class SceParameters(MethodParameters):
    select_topk: float = Field(
        1.0,
        ge=0,
        le=1,
        description="fraction of the entries that differ between experts to keep, those of largest variance",
    )
    int8_mask: bool = Field(
        False, description="accepted for mergekit recipes, without effect: signs are never stored as int8 here"
    )


class Sce(DirectMethod[SceParameters, MethodParameters]):
    """base + weighted mean over the experts of the selected entries that have the majority's sign.

    Selected are the entries with the largest variance over the experts. The weight of an expert is the mean square of
    the selected entries of its task vector, divided by the sum over the experts.

    Cost: three passes; the variance is accumulated in float64.

    References
    ----------
    FuseChat: Knowledge Fusion of Chat Models, arXiv:2408.07990
    """

    name = "sce"
    summary = "select the most variable entries, weight experts by energy, erase minority signs"
    source = "arXiv:2408.07990"
    Parameters = SceParameters
    Expert = MethodParameters
    order_matters = True  # where votes cancel, rounding of the sum in recipe order decides the elected sign
    passes = 3  # 2 where select_topk is 1

    def merge(
        self, inputs: TensorInputs, parameters: SceParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        base = require_base(inputs, self.name)
        selection = Selection(_select_most_variable(inputs, base, parameters.select_topk))
        weights = _compute_weights(inputs, selection)
        election = SignElection(base, with_weights=True)
        for index, delta in other_task_vectors(inputs):
            flat_delta = delta.reshape(-1)
            for span in blocks(flat_delta):
                block = selection.apply(flat_delta, span)
                election.add(span, block, weights[index], weighted_vote=False)
            del delta, flat_delta
        return election.weighted_mean(min_weight=_TINY).add_(base)

    def peak_tensors(self, num_experts: int) -> float:
        # five sums and the mask; during selection two float64 sums, then the work space of topk
        return TASK_VECTOR_TENSORS + 5.5


def _select_most_variable(inputs: TensorInputs, base: torch.Tensor, fraction: float) -> torch.Tensor | None:
    """Return a flat mask of the entries of largest variance, `fraction` of those where it is not 0; None for all."""
    if fraction >= 1:
        return None
    # Welford's recurrence in float64: the variance of equal entries is exactly zero.
    mean = torch.zeros(base.numel(), dtype=torch.float64, device=base.device)
    squares = torch.zeros_like(mean)
    count = 0
    for _, delta in other_task_vectors(inputs):
        count += 1
        flat_delta = delta.reshape(-1)
        for span in blocks(flat_delta):
            values = flat_delta[span].double()
            offset = values - mean[span]
            mean[span] += offset / count
            squares[span] += offset * (values - mean[span])
        del delta, flat_delta
    variance = (squares / max(1, count)).to(base.dtype)
    del mean, squares
    num_kept = int(int(torch.count_nonzero(variance)) * fraction)
    if num_kept == 0:
        return torch.zeros(base.numel(), dtype=torch.bool, device=base.device)
    return keep_largest_values(variance, num_kept)


def _compute_weights(inputs: TensorInputs, selection: Selection) -> dict[int, float]:
    energies: dict[int, float] = {}
    for index, delta in other_task_vectors(inputs):
        flat_delta = delta.reshape(-1)
        total = 0.0
        for span in blocks(flat_delta):
            block = selection.apply(flat_delta, span)
            total += inner_product(block, block)
        energies[index] = total / max(1, delta.numel())
        del delta, flat_delta
    sum_of_energies = sum(energies.values())
    if sum_of_energies < _TINY:
        return {index: 1 / len(energies) for index in energies}
    return {index: energy / sum_of_energies for index, energy in energies.items()}
