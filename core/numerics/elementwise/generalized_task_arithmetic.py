"""base + lambda * combine_i(weight_i * sparsify_i(expert_i - base)): the family of TIES, DARE, DELLA and Breadcrumbs.

A method of the family defines which entries of each task vector are kept (sparsify.py), whether signs are elected
(elected_sign.py) or the sum is plain, and the defaults. Each expert is read once, one at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

from pydantic import ConfigDict, Field

from ..lazy_torch import torch
from ..method import DirectMethod, ExpertParameters, MethodParameters, TensorInputs
from .blocks import blocks
from .elected_sign import SignElection
from .expert_inputs import TASK_VECTOR_TENSORS, expert_generator, other_task_vectors, require_base
from .sparsify import LARGEST_SORT, SORT_TENSORS, Selection, rescale_selection


class CombineParameters(MethodParameters):
    """Parameters of every method of the family, named as in mergekit."""

    model_config = ConfigDict(populate_by_name=True)

    normalize: bool = Field(False, description="divide the sum by the sum of the weights that take part in it")
    lambda_: float = Field(1.0, alias="lambda", description="factor on the merged delta before it is added to the base")
    rescale: bool = Field(False, description="scale each sparsified task vector back to its L1 norm before sparsifying")
    int8_mask: bool = Field(
        False, description="accepted for mergekit recipes, without effect: signs are never stored as int8 here"
    )


class SparseExpert(ExpertParameters):
    """Parameters of each expert in sparsifying methods of the family, named as in mergekit."""

    density: float = Field(1.0, ge=0, le=1, description="fraction of the task vector's entries that is kept")


P = TypeVar("P", bound=CombineParameters)
E = TypeVar("E", bound=ExpertParameters)


class GeneralizedTaskArithmetic(DirectMethod[P, E]):
    """Abstract base class: a method implements `keep` and sets `elects_signs`."""

    elects_signs: ClassVar[bool]
    sorts_ties: ClassVar[bool] = False  # True: `keep` may sort magnitudes (see sparsify.py)

    @abstractmethod
    def keep(self, delta: torch.Tensor, expert: E, generator: torch.Generator) -> torch.Tensor | None:
        """Return the flat boolean mask of the entries to keep, or None to keep all."""

    def merge(self, inputs: TensorInputs, parameters: P, experts: Sequence[E]) -> torch.Tensor:
        base = require_base(inputs, self.name)
        if self.elects_signs:
            merged = self._sum_of_one_sign(inputs, parameters, experts, base)
        else:
            merged = self._plain_sum(inputs, parameters, experts, base)
        factor = self.factor(parameters)
        if factor != 1:
            merged.mul_(factor)
        return merged.add_(base)

    def factor(self, parameters: P) -> float:
        """Return the factor on the merged delta."""
        return parameters.lambda_

    def _select(
        self, inputs: TensorInputs, index: int, delta: torch.Tensor, parameters: P, experts: Sequence[E]
    ) -> Selection:
        keep = self.keep(delta, experts[index], expert_generator(inputs, index))
        return rescale_selection(delta, keep) if parameters.rescale else Selection(keep)

    def _sum_of_one_sign(
        self, inputs: TensorInputs, parameters: P, experts: Sequence[E], base: torch.Tensor
    ) -> torch.Tensor:
        election = SignElection(base, with_weights=parameters.normalize)
        for index, delta in other_task_vectors(inputs):
            selection = self._select(inputs, index, delta, parameters, experts)
            flat_delta = delta.reshape(-1)
            for span in blocks(flat_delta):
                election.add(span, selection.apply(flat_delta, span), experts[index].weight)
            del delta, flat_delta, selection
        return election.weighted_mean() if parameters.normalize else election.sum()

    def _plain_sum(self, inputs: TensorInputs, parameters: P, experts: Sequence[E], base: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(base.numel(), dtype=base.dtype, device=base.device)
        total_weight = 0.0
        for index, delta in other_task_vectors(inputs):
            selection = self._select(inputs, index, delta, parameters, experts)
            flat_delta, weight = delta.reshape(-1), experts[index].weight
            for span in blocks(flat_delta):
                total[span].add_(selection.apply(flat_delta, span), alpha=weight)
            total_weight += weight
            del delta, flat_delta, selection
        if parameters.normalize and abs(total_weight) >= 1e-8:  # as mergekit: no division where weights cancel
            total.div_(total_weight)
        return total.reshape(base.shape)

    def peak_tensors(self, num_experts: int) -> float:
        sums = 5 if self.elects_signs else 1  # with `normalize`; three without
        # While the mask is made and magnitudes are sorted, only the task vector is in memory, not the expert.
        selecting = 0.5 + (SORT_TENSORS if self.sorts_ties else 0)
        return sums + max(TASK_VECTOR_TENSORS, TASK_VECTOR_TENSORS - 1 + selecting)

    def peak_elements(self, num_elements: int, num_experts: int) -> int:
        peak = super().peak_elements(num_elements, num_experts)
        spared = max(0, num_elements - LARGEST_SORT)  # of tensors too large to be sorted
        return peak - int(SORT_TENSORS * spared) if self.sorts_ties else peak
