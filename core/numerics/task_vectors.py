"""Task vectors of one weight: expert minus base, one expert at a time, dense or as LoRA factors.

Shapes: M = out features (D1), K = in features (D2), R = rank of the factors, N = experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..errors import ShapeError
from .lazy_torch import torch
from .noise.storage_noise import StorageNoise
from .products.matrix_product import product


@dataclass(frozen=True, slots=True)
class LowRank:
    """A task vector as two factors, v = left @ right, with LoRA's scaling multiplied into them.

    left : Tensor, (M, R)
    right : Tensor, (R, K)
    """

    left: torch.Tensor
    right: torch.Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ShapeError(
                f"low-rank factors do not fit: left has shape {tuple(self.left.shape)}, right"
                f" {tuple(self.right.shape)}; expected (M, R) and (R, K)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """R, an upper bound of the rank of the product."""
        return self.left.shape[1]

    def dense(self) -> torch.Tensor:
        """Return the product, (M, K)."""
        return product(self.left, self.right)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LowRank:
        """Return the factors on a device and in a dtype."""
        return LowRank(self.left.to(device, dtype), self.right.to(device, dtype))


class TaskVectors(Protocol):
    """The task vectors of one weight, iterable more than once; only one expert at a time has to be in memory.

    Every iteration yields the same experts in the same order, in the arithmetic dtype and on the device.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(M, K)."""
        ...

    @property
    def num_experts(self) -> int:
        """N."""
        ...

    @property
    def max_ranks(self) -> Sequence[int]:
        """Upper bound of the rank of each expert, known before it is read: min(M, K) if dense, R of LoRA factors."""
        ...

    @property
    def all_low_rank(self) -> bool:
        """True when every expert is a `LowRank`."""
        ...

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        """Iterate over the experts, (M, K) each."""
        ...


@runtime_checkable
class WithStorageNoise(Protocol):
    """Task vectors of which the rounding of storage is known."""

    def storage_noise(self, index: int) -> StorageNoise | None:
        """Return the noise of expert `index`, its weight included; None for none. Call it after an iteration."""
        ...


def noise_of(task_vectors: TaskVectors, index: int) -> StorageNoise | None:
    """Return the noise of expert `index` from the rounding of its storage; None where there is none, or none known.

    It is known once an iteration has yielded the expert, because it follows from the stored numbers.
    """
    return task_vectors.storage_noise(index) if isinstance(task_vectors, WithStorageNoise) else None


def noises_of(task_vectors: TaskVectors) -> list[StorageNoise | None]:
    """Return `noise_of` of all experts, after an iteration."""
    return [noise_of(task_vectors, index) for index in range(task_vectors.num_experts)]


class InMemoryTaskVectors:
    """Task vectors that are all in memory, for tests, notebooks and the tensor-level call.

    Parameters
    ----------
    noises : of each expert, as `noise_of` returns it
    """

    def __init__(
        self, vectors: Iterable[torch.Tensor | LowRank], noises: Sequence[StorageNoise | None] | None = None
    ) -> None:
        self._vectors = list(vectors)
        self._noises = noises
        if not self._vectors:
            raise ShapeError("found no task vectors; expected at least one")
        shapes = [tuple(v.shape) for v in self._vectors]
        for index, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise ShapeError(
                    f"task vector {index} has shape {shape}; expected {shapes[0]}, the shape of task vector 0"
                )

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

    def storage_noise(self, index: int) -> StorageNoise | None:
        """As `WithStorageNoise`."""
        return None if self._noises is None else self._noises[index]

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        return iter(self._vectors)


class WrappedTaskVectors:
    """Base class of task vectors that add something to others of the same shape; `__iter__` yields the others."""

    def __init__(self, vectors: TaskVectors) -> None:
        self._vectors = vectors

    @property
    def shape(self) -> tuple[int, int]:
        return self._vectors.shape

    @property
    def num_experts(self) -> int:
        return self._vectors.num_experts

    @property
    def max_ranks(self) -> Sequence[int]:
        return self._vectors.max_ranks

    @property
    def all_low_rank(self) -> bool:
        return self._vectors.all_low_rank

    def storage_noise(self, index: int) -> StorageNoise | None:
        """Return the noise of expert `index`; see `WithStorageNoise`."""
        return noise_of(self._vectors, index)

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        return iter(self._vectors)


class TransposedTaskVectors:
    """The transposes of task vectors, (K, M) each, as views without a copy; factors are exchanged and transposed.

    Parameters
    ----------
    original : TaskVectors, (M, K)
    """

    def __init__(self, original: TaskVectors) -> None:
        self.original = original

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.original.shape
        return columns, rows

    @property
    def num_experts(self) -> int:
        return self.original.num_experts

    @property
    def max_ranks(self) -> Sequence[int]:
        return self.original.max_ranks

    @property
    def all_low_rank(self) -> bool:
        return self.original.all_low_rank

    def storage_noise(self, index: int) -> StorageNoise | None:
        """As `WithStorageNoise`."""
        noise = noise_of(self.original, index)
        return None if noise is None else noise.transposed

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        for vector in self.original:
            transposed = transpose(vector)
            del vector  # a bound name would keep this expert in memory beside the next one
            yield transposed
            del transposed


def transpose(delta: torch.Tensor | LowRank) -> torch.Tensor | LowRank:
    """Return the transpose of a matrix or of a product of factors, as views."""
    return LowRank(delta.right.T, delta.left.T) if isinstance(delta, LowRank) else delta.T


def to_dense(delta: torch.Tensor | LowRank) -> torch.Tensor:
    """Return a matrix as it is, and a product of factors multiplied out."""
    return delta.dense() if isinstance(delta, LowRank) else delta


def may_overflow(vector: torch.Tensor | LowRank, num_experts: int) -> bool:
    """Return whether the sum of the absolute entries of `num_experts` such task vectors may exceed the dtype's range.

    Sums over experts, and norms, are then Inf, or wrong without Inf where a method divides by them. Weights of models
    are many orders of magnitude smaller. Reads the entries once, without a copy.
    """
    if isinstance(vector, LowRank):
        left, right = vector.left, vector.right
        if not left.numel() or not right.numel():
            return False
        largest = _largest(left) * _largest(right) * left.shape[1] * left.shape[0] * right.shape[1]
    else:
        left = vector
        largest = _largest(vector) * vector.numel() if vector.numel() else 0.0
    return largest * num_experts > torch.finfo(left.dtype).max


def _largest(tensor: torch.Tensor) -> float:
    low, high = tensor.aminmax()
    return max(-float(low), float(high))
