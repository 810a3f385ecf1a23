"""Task vectors with their sums C, D and S, so that a decomposition does not read the experts."""

from __future__ import annotations

from typing import final

from ..task_vectors import TaskVectors, WrappedTaskVectors
from .operator import InterferenceOperator


@final
class SummedTaskVectors(WrappedTaskVectors):
    """Experts together with their C, D and S.

    Iterating reads the experts, for methods with a second pass over them (energies of each expert, output filter).
    """

    def __init__(self, operator: InterferenceOperator, experts: TaskVectors) -> None:
        assert operator.num_experts == experts.num_experts, (operator.num_experts, experts.num_experts)
        self._operator: InterferenceOperator | None = operator
        super().__init__(experts)

    def take_operator(self) -> InterferenceOperator:
        """Return the sums and drop the reference to them, to free their memory early. Call it once."""
        operator, self._operator = self._operator, None
        assert operator is not None, "take_operator was called twice"
        return operator
