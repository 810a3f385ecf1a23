"""The sum of the experts of one matrix, added up while they are decomposed, or else in a pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..numerics.interference.summed_task_vectors import SummedTaskVectors
from ..numerics.products.matrix_product import add_product
from ..numerics.task_vectors import LowRank, TaskVectors, WrappedTaskVectors


class ExpertSum:
    """S = sum_i v_i of the weighted task vectors of one matrix, (M, K).

    The experts are added in the order of the stream, in the arithmetic dtype: whether they are recorded or read again
    does not change a bit. Where sums are kept between runs, S is the kept one.

    Parameters
    ----------
    task_vectors : returns the experts, or the experts with their kept sums
    """

    def __init__(self, task_vectors: Callable[[], TaskVectors]) -> None:
        self._task_vectors = task_vectors
        self._total: torch.Tensor | None = None

    def recording(self) -> TaskVectors:
        """Return the experts for a decomposition; S is known after the first pass over them."""
        vectors = self._task_vectors()
        return vectors if isinstance(vectors, SummedTaskVectors) else _Recorded(vectors, self._keep)

    def times(self, factor: float) -> torch.Tensor:
        """Return factor * S, a new tensor (M, K). Call it once after `recording`: the recorded S is given away."""
        total, self._total = self._total, None
        if total is None:
            vectors = self._task_vectors()
            if isinstance(vectors, SummedTaskVectors):
                total = vectors.take_operator().S
            else:
                for vector in vectors:
                    total = _add(total, vector)
        assert total is not None, "task vectors contain at least one expert"
        return total.mul_(factor)

    def _keep(self, total: torch.Tensor) -> None:
        self._total = total


class _Recorded(WrappedTaskVectors):
    """Task vectors whose sum is reported after the first pass over them."""

    def __init__(self, vectors: TaskVectors, keep: Callable[[torch.Tensor], None]) -> None:
        super().__init__(vectors)
        self._keep: Callable[[torch.Tensor], None] | None = keep

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        if self._keep is None:
            yield from self._vectors
            return
        total: torch.Tensor | None = None
        for vector in self._vectors:
            total = _add(total, vector)
            yield vector
            del vector  # a bound name would keep this expert in memory beside the next one
        if total is not None:
            self._keep(total)
        self._keep = None


def _add(total: torch.Tensor | None, vector: torch.Tensor | LowRank) -> torch.Tensor:
    if isinstance(vector, LowRank):
        return vector.dense() if total is None else add_product(total, vector.left, vector.right)
    return vector.clone() if total is None else total.add_(vector)
