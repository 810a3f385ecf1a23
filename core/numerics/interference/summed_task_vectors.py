"""Task vectors with their sums C, D and S, so that a decomposition does not read the experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from ..lazy_torch import torch
from ..noise.storage_noise import StorageNoise
from ..task_vectors import LowRank, TaskVectors, noise_of
from .operator import InterferenceOperator


@final
class SummedTaskVectors:
    """Experts together with their C, D and S.

    Iterating reads the experts, for methods with a second pass over them (energies of each expert, output filter).
    """

    def __init__(self, operator: InterferenceOperator, experts: TaskVectors) -> None:
        assert operator.num_experts == experts.num_experts, (operator.num_experts, experts.num_experts)
        self._operator: InterferenceOperator | None = operator
        self._experts = experts

    def take_operator(self) -> InterferenceOperator:
        """Return the sums and drop the reference to them, to free their memory early. Call it once."""
        operator, self._operator = self._operator, None
        assert operator is not None, "take_operator was called twice"
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

    def storage_noise(self, index: int) -> StorageNoise | None:
        """As `WithStorageNoise`."""
        return noise_of(self._experts, index)

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        return iter(self._experts)
