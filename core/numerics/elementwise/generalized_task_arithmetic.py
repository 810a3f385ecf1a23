"""base + lambda * combine_i(weight_i * sparsify_i(expert_i - base)): the family of TIES, DARE, DELLA and Breadcrumbs.

A method of the family defines which entries of each task vector are kept (sparsify.py), whether signs are elected
(elected_sign.py) or the sum is plain, and the defaults. Each expert is read once, one at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import ConfigDict, Field

from ..lazy_torch import torch
from ..method import DirectMethod, ExpertParameters, MethodParameters
from ..tensor_inputs import BlockMerge, BlockwiseInputs, TensorInputs
from .blocks import blocks
from .elected_sign import SignElection
from .expert_inputs import TASK_VECTOR_TENSORS, expert_generator, other_task_vectors, require_base
from .sparsify import TIE_TENSORS, Selection, rescale_selection
from .thresholds import LARGEST_SHARE, LARGEST_SORT

if TYPE_CHECKING:
    from .block_selection import BlockSelection  # imports NumPy, which plans do not need


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


_HISTOGRAM_BYTES = 2**20
_ELECTION_ELEMENTS = 2**16  # of a block in which signs are elected

P = TypeVar("P", bound=CombineParameters)
E = TypeVar("E", bound=ExpertParameters)


class GeneralizedTaskArithmetic(DirectMethod[P, E]):
    """Abstract base class: a method implements `keep` and sets `elects_signs`."""

    elects_signs: ClassVar[bool]
    num_thresholds: ClassVar[int] = 0  # of magnitude that `keep` searches; tie_order.py may choose between ties

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

    def block_selection(self, inputs: BlockwiseInputs, index: int, expert: E, *, remember: bool) -> BlockSelection:
        """Return the selection that keeps the entries of `keep` block by block, where `has_block_form` is true.

        Parameters
        ----------
        remember : the masks are asked for twice, so that random ones should be kept in memory
        """
        raise NotImplementedError(self.name)

    def merge_in_blocks(self, inputs: BlockwiseInputs, parameters: P, experts: Sequence[E]) -> BlockMerge:
        from .block_election import BlockElection
        from .block_statistics import complete_selections

        selections = {
            index: self.block_selection(inputs, index, experts[index], remember=parameters.rescale)
            for index in range(inputs.num_experts)
            if not inputs.is_base(index)
        }
        complete_selections(inputs, selections, rescale=parameters.rescale)

        def merge_block(block: TensorInputs) -> torch.Tensor:
            base = require_base(block, self.name)
            if self.elects_signs and selections:
                election = BlockElection(with_weights=parameters.normalize)
                for index, delta in other_task_vectors(block):
                    election.add(selections[index].apply(delta), experts[index].weight)
                merged = election.weighted_mean() if parameters.normalize else election.sum()
            else:
                total = torch.zeros_like(base)
                for index, delta in other_task_vectors(block):
                    total.add_(selections[index].apply(delta), alpha=experts[index].weight)
                merged = self._normalized(total, sum(experts[index].weight for index in selections), parameters)
            factor = self.factor(parameters)
            return (merged if factor == 1 else merged.mul_(factor)).add_(base)

        return merge_block

    def block_passes(self, parameters: P) -> int:
        return 1 + (self.num_thresholds > 0) + parameters.rescale

    def block_work_bytes(self, num_elements: int, num_experts: int, element_bytes: int) -> int:
        elected = (num_experts + 3) * _ELECTION_ELEMENTS * element_bytes if self.elects_signs else 0
        if not self.num_thresholds:
            return elected + num_experts * (num_elements // 8 + 1)  # masks
        # What is collected for all experts, and of one of them joined and partitioned; or histograms.
        collected = (num_experts + 2) * int(LARGEST_SHARE * num_elements) * element_bytes
        searching = self.num_thresholds * (collected + 2 * num_experts * _HISTOGRAM_BYTES)
        # The task vector, and the work space.
        ordering = int((TIE_TENSORS + 1) * num_elements * element_bytes) if num_elements <= LARGEST_SORT else 0
        return elected + max(searching, ordering)

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
        return self._normalized(total, total_weight, parameters).reshape(base.shape)

    @staticmethod
    def _normalized(total: torch.Tensor, total_weight: float, parameters: P) -> torch.Tensor:
        divides = parameters.normalize and abs(total_weight) >= 1e-8  # as mergekit: not where weights cancel
        return total.div_(total_weight) if divides else total

    def peak_tensors(self, num_experts: int) -> float:
        sums = 5 if self.elects_signs else 1  # with `normalize`; three without
        # While the mask is made and ties are ordered, only the task vector is in memory, not the expert.
        selecting = 0.5 + (TIE_TENSORS if self.num_thresholds else 0)
        return sums + max(TASK_VECTOR_TENSORS, TASK_VECTOR_TENSORS - 1 + selecting)

    def peak_elements(self, num_elements: int, num_experts: int) -> int:
        peak = super().peak_elements(num_elements, num_experts)
        spared = max(0, num_elements - LARGEST_SORT)  # elements of tensors whose ties are not ordered
        return peak - int(TIE_TENSORS * spared) if self.num_thresholds else peak
