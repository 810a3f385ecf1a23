"""Average: base plus the mean of the task vectors, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

from ..lazy_torch import torch
from ..method import DirectMethod, ExpertParameters, SpectralParameters, TensorInputs


class Average(DirectMethod[SpectralParameters, ExpertParameters]):
    """base + scale * (1/N) sum_i weight_i v_i; the weights are not normalized. N counts the experts
    whose weight is not 0.

    Cost: one pass, two operations per entry and expert.

    References
    ----------
    Model soups, arXiv:2203.05482
    """

    name = "average"
    summary = "base + scale * mean of the task vectors"
    source = "Model soups, arXiv:2203.05482"
    algorithm_version = 2
    elementwise = True
    Parameters = SpectralParameters
    Expert = ExpertParameters

    def merge(
        self, inputs: TensorInputs, parameters: SpectralParameters, experts: Sequence[ExpertParameters]
    ) -> torch.Tensor:
        base = inputs.base
        assert base is not None, "task vectors need a base"
        total = torch.zeros_like(base)
        for task_vector, expert in zip(inputs.task_vectors(), experts, strict=True):
            total.add_(task_vector, alpha=expert.weight)
        count = sum(expert.weight != 0 for expert in experts)
        return base + total * (parameters.scale / max(1, count))

    def peak_tensors(self, num_experts: int) -> float:
        return 5.0
