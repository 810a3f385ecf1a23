"""Task vectors of one weight: expert minus base, one expert at a time, dense or as LoRA factors.

Shapes: M = out features (D1), K = in features (D2), R = rank of the factors, N = number of experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import ShapeError
from .lazy_torch import torch


@dataclass(frozen=True, slots=True)
class LowRank:
    """A task vector kept as factors, v = left @ right (any LoRA scaling is already folded in).

    left : Tensor, (M, R)
    right : Tensor, (R, K)
    """

    left: torch.Tensor
    right: torch.Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ShapeError(
                f"low-rank factors do not fit: left {tuple(self.left.shape)}, right {tuple(self.right.shape)};"
                " expected (M, R) and (R, K)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def dense(self) -> torch.Tensor:
        """The product, (M, K)."""
        return self.left @ self.right

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LowRank:
        return LowRank(self.left.to(device, dtype), self.right.to(device, dtype))


TaskVector = "torch.Tensor | LowRank"


class TaskVectors(Protocol):
    """The task vectors of one weight, iterable more than once; at most one expert needs to be in memory.

    Every pass yields the same experts in the same order, already in the arithmetic dtype and on the device.
    `max_ranks[i]` bounds the rank of expert i without reading it: min(M, K) for a dense one, R for factors.
    """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def max_ranks(self) -> Sequence[int]: ...
    @property
    def all_low_rank(self) -> bool: ...
    def __iter__(self) -> Iterator[torch.Tensor | LowRank]: ...


class InMemoryTaskVectors:
    """Task vectors that are all in memory: for tests, notebooks and the tensor-level call."""

    def __init__(self, vectors: Iterable[torch.Tensor | LowRank]) -> None:
        self._vectors = list(vectors)
        if not self._vectors:
            raise ShapeError("no task vectors given; expected at least one expert")
        shapes = [tuple(v.shape) for v in self._vectors]
        for index, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise ShapeError(f"task vector {index} has shape {shape}, task vector 0 has {shapes[0]}")

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._vectors[0].shape
        return rows, columns

    @property
    def num_experts(self) -> int:
        return len(self._vectors)

    @property
    def max_ranks(self) -> Sequence[int]:
        return [v.rank if isinstance(v, LowRank) else min(v.shape) for v in self._vectors]

    @property
    def all_low_rank(self) -> bool:
        return all(isinstance(v, LowRank) for v in self._vectors)

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        return iter(self._vectors)
