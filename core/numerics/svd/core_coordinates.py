"""Experts in the coordinates of their common row and column space: small matrices, without loss.

Shapes: M = out features, K = in features, P and P' = dimensions of the common column and row space, N = experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..lazy_torch import torch
from ..task_vectors import LowRank, TaskVectors
from .compact_svd import gram, relative_cut, stays_low_rank


@dataclass(frozen=True, slots=True)
class CoreTaskVectors:
    """v_i = L^T C_i R for every expert; iterates over the C_i, (P, P'), one at a time.

    left : Tensor, (P, M), orthonormal rows
    right : Tensor, (P', K), orthonormal rows
    source : the experts themselves
    """

    left: torch.Tensor
    right: torch.Tensor
    source: TaskVectors

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[0]

    @property
    def num_experts(self) -> int:
        return self.source.num_experts

    @property
    def max_ranks(self) -> Sequence[int]:
        return [min(rank, *self.shape) for rank in self.source.max_ranks]

    @property
    def all_low_rank(self) -> bool:
        return False

    def __iter__(self) -> Iterator[torch.Tensor]:
        for vector in self.source:
            if isinstance(vector, LowRank):
                yield (self.left @ vector.left) @ (vector.right @ self.right.T)
            else:
                yield self.left @ vector @ self.right.T


def core_task_vectors(task_vectors: TaskVectors) -> CoreTaskVectors:
    """The experts over their reference bases.

    LoRA experts v_i = B_i A_i: left singular vectors of the stacked B_i, right singular vectors of the stacked A_i (the
    paper's bases). Dense experts have no such factors: the singular vectors of the experts side by side and on top of
    each other take their place, from the Gram matrices sum_i v_i v_i^T and sum_i v_i^T v_i. Both are in descending
    order of singular value and without null directions.

    Cost: LoRA 4 (M + K) P^2; dense 2 N M K (M + K) + 9 (M^3 + K^3), all in float64.

    References
    ----------
    Accurate and Efficient Low-Rank Model Merging in Core Space, arXiv:2509.17786;
    code: github.com/apanariello4/core-space-merging, task_merger.get_core_matrices
    """
    shape = task_vectors.shape
    if stays_low_rank(shape, task_vectors.max_ranks, task_vectors.all_low_rank):
        stack = [vector for vector in task_vectors if isinstance(vector, LowRank)]
        left = _row_space(torch.cat([vector.left for vector in stack], dim=1).T)
        right = _row_space(torch.cat([vector.right for vector in stack], dim=0))
        return CoreTaskVectors(left, right, task_vectors)
    left, dtype = stacked_basis(task_vectors, by_rows=False)
    right, _ = stacked_basis(task_vectors, by_rows=True)
    return CoreTaskVectors(left.to(dtype), right.to(dtype), task_vectors)


def stacked_basis(task_vectors: TaskVectors, *, by_rows: bool) -> tuple[torch.Tensor, torch.dtype]:
    """Singular vectors of the dense experts on top of each other (right ones) or side by side (left ones).

    Returns
    -------
    basis : Tensor, (P, K) or (P, M), float64, rows in descending order
    dtype : of the experts
    """
    total: torch.Tensor | None = None
    dtype = torch.float64
    for vector in task_vectors:
        full = vector.dense() if isinstance(vector, LowRank) else vector
        products = gram(full.T if by_rows else full)
        dtype = full.dtype
        total = products if total is None else total.add_(products)
    assert total is not None
    eigenvalues, vectors = torch.linalg.eigh(total)
    return _above_cut(eigenvalues, vectors, task_vectors.shape), dtype


def _row_space(rows: torch.Tensor) -> torch.Tensor:
    """Right singular vectors of a flat matrix as rows, in the dtype of the input."""
    basis, core = torch.linalg.qr(rows.double().T)
    left, values, _ = torch.linalg.svd(core, full_matrices=False)
    keep = values > relative_cut((rows.shape[0], rows.shape[1])) * values[:1]
    return (basis @ left[:, keep]).T.to(rows.dtype).contiguous()


def _above_cut(eigenvalues: torch.Tensor, vectors: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Eigenvectors as rows, descending, above the square of the relative cut."""
    keep = (eigenvalues > relative_cut(shape) ** 2 * eigenvalues[-1]) & (eigenvalues > 0)
    return vectors[:, keep].T.flip(0)
