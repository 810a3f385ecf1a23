"""RAM: each entry is averaged over the experts that changed it; RAM+ enlarges entries that only one changed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from ..elementwise.blocks import blocks
from ..elementwise.expert_inputs import TASK_VECTOR_TENSORS, other_task_vectors, require_base
from ..lazy_torch import torch
from ..method import DirectMethod, MethodParameters, TensorInputs


class RamParameters(MethodParameters):
    epsilon: float = Field(
        1e-5, ge=0, description="an entry counts as changed if its task vector is larger in magnitude"
    )


class RamPlusParameters(RamParameters):
    r: float = Field(
        0.1, description="growth of an expert's unique entries with its ratio of overlapping to unique ones"
    )
    alpha: float = Field(0.2, ge=0, description="upper bound of that ratio")


class Ram(DirectMethod[RamParameters, MethodParameters]):
    """base + sum_i m_i v_i / max(1, sum_i m_i), where m_i is 1 for entries with |v_i| > epsilon, else 0.

    Cost: one pass, five operations per entry and expert.

    References
    ----------
    Reinforced Agent Merging, arXiv:2601.13572; mergekit 0.1.5
    """

    name = "ram"
    summary = "each entry averaged over the experts that changed it"
    source = "arXiv:2601.13572"
    Parameters = RamParameters
    Expert = MethodParameters
    elementwise = True

    def merge(
        self, inputs: TensorInputs, parameters: RamParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        base = require_base(inputs, self.name)
        counts = torch.zeros(base.numel(), dtype=torch.int32, device=base.device)
        total = torch.zeros(base.numel(), dtype=base.dtype, device=base.device)
        for _, delta in other_task_vectors(inputs):
            flat_delta = delta.reshape(-1)
            for span in blocks(flat_delta):
                changed = flat_delta[span].abs() > parameters.epsilon
                counts[span] += changed
                total[span] += flat_delta[span] * changed
            del delta, flat_delta
        return total.div_(counts.clamp_(min=1)).reshape(base.shape).add_(base)

    def peak_tensors(self, num_experts: int) -> float:
        return TASK_VECTOR_TENSORS + 2  # sum and counts


class RamPlusTensorLocal(DirectMethod[RamPlusParameters, MethodParameters]):
    """As RAM, with the unique entries of expert i times 1 + r min(alpha, overlapping_i / unique_i).

    Unique entries are changed by expert i alone, overlapping ones by others too; both are counted in this tensor.

    Cost: three passes: experts that changed each entry, counts of each expert, sum.

    References
    ----------
    Reinforced Agent Merging, arXiv:2601.13572; mergekit 0.1.5
    """

    name = "ramplus_tl"
    summary = "as ram, with the unique entries enlarged of experts that overlap with others"
    source = "arXiv:2601.13572"
    Parameters = RamPlusParameters
    Expert = MethodParameters
    passes = 3

    def merge(
        self, inputs: TensorInputs, parameters: RamPlusParameters, experts: Sequence[MethodParameters]
    ) -> torch.Tensor:
        base = require_base(inputs, self.name)
        counts = torch.zeros(base.numel(), dtype=torch.int32, device=base.device)
        for _, delta in other_task_vectors(inputs):
            flat_delta = delta.reshape(-1)
            for span in blocks(flat_delta):
                counts[span] += flat_delta[span].abs() > parameters.epsilon
            del delta, flat_delta
        growth: dict[int, float] = {}
        for index, delta in other_task_vectors(inputs):
            flat_delta = delta.reshape(-1)
            num_unique = num_shared = 0
            for span in blocks(flat_delta):
                counts_of_changed = counts[span][flat_delta[span].abs() > parameters.epsilon]
                num_unique += int((counts_of_changed == 1).sum())
                num_shared += int((counts_of_changed > 1).sum())
            share = num_shared / max(num_unique, parameters.epsilon) if num_shared else 0.0
            growth[index] = 1 + parameters.r * min(parameters.alpha, share)
            del delta, flat_delta
        total = torch.zeros(base.numel(), dtype=base.dtype, device=base.device)
        for index, delta in other_task_vectors(inputs):
            flat_delta = delta.reshape(-1)
            for span in blocks(flat_delta):
                changed = flat_delta[span] * (flat_delta[span].abs() > parameters.epsilon)
                averaged = changed / counts[span].clamp(min=1)
                total[span] += torch.where(counts[span] == 1, changed * growth[index], averaged)
            del delta, flat_delta
        return total.reshape(base.shape).add_(base)

    def peak_tensors(self, num_experts: int) -> float:
        return TASK_VECTOR_TENSORS + 2  # sum and counts
