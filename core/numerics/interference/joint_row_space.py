"""Coordinates of the experts in their joint row space: P columns instead of K.

Results of sums, products v^T v and SVDs of the experts rotate with their columns, so solving a problem for v_i Q^T and
multiplying the result by Q is exact. (Not for Adam, which divides entry by entry.)

Shapes: M = out features (D1), K = in features (D2), P = sum of the experts' row dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..lazy_torch import torch
from ..linear_algebra import qr
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import product
from ..task_vectors import LowRank, TaskVectors, noise_of


@dataclass(frozen=True, slots=True)
class ProjectedTaskVectors:
    """TaskVectors v_i Q^T, (M, P).

    full : TaskVectors, the v_i, (M, K)
    basis : Tensor, (P, K), Q, orthonormal rows
    """

    full: TaskVectors
    basis: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.full.shape[0], self.basis.shape[0]

    @property
    def num_experts(self) -> int:
        return self.full.num_experts

    @property
    def max_ranks(self) -> Sequence[int]:
        return [min(rank, self.basis.shape[0]) for rank in self.full.max_ranks]

    @property
    def all_low_rank(self) -> bool:
        return self.full.all_low_rank

    def storage_noise(self, index: int) -> StorageNoise | None:
        """As `WithStorageNoise`. The rows of Q span all rows of v_i, so its singular values and their noise stay."""
        return noise_of(self.full, index)

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        for v in self.full:
            if isinstance(v, LowRank):
                yield LowRank(v.left, product(v.right, self.basis.T))
            else:
                yield product(v, self.basis.T)


def project_to_row_space(task_vectors: TaskVectors) -> ProjectedTaskVectors:
    """Return the coordinates of the experts in an orthonormal basis of all their rows.

    Cost: 8 K P^2 flops; 3 P K elements.
    """
    rows = torch.cat([v.right if isinstance(v, LowRank) else v for v in task_vectors])
    basis, _ = qr(rows.T)
    return ProjectedTaskVectors(task_vectors, basis.T)
