"""Task vectors whose sums are already known: the first pass over the experts, the expensive one, has been paid for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from ..lazy_torch import torch
from ..task_vectors import LowRank, TaskVectors
from .operator import InterferenceOperator


@final
class SummedTaskVectors:
    """`experts`, with their C, D and S.

    Iterating reads the experts, all of them: a method that passes over them a second time (energies of each expert,
    the output-side filter) still can.
    """

    def __init__(self, operator: InterferenceOperator, experts: TaskVectors) -> None:
        assert operator.num_experts == experts.num_experts, (operator.num_experts, experts.num_experts)
        self._operator: InterferenceOperator | None = operator
        self._experts = experts

    def take_operator(self) -> InterferenceOperator:
        """The sums, norms in the order of the experts; once, so that nobody else keeps them alive."""
        operator, self._operator = self._operator, None
        assert operator is not None, "the sums are handed over once"
        return operator

    @property
    def shape(self) -> tuple[int, int]:
        return self._experts.shape

    @property
    def num_experts(self) -> int:
        return self._experts.num_experts

    @property
    def max_ranks(self) -> Sequence[int]:
        return self._experts.max_ranks

    @property
    def all_low_rank(self) -> bool:
        return self._experts.all_low_rank

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        return iter(self._experts)
