"""Coordinates of the experts in their common column and row space: smaller matrices that determine them.

Shapes: M = out features, K = in features, P and P' = dimensions of the common column and row space, N = experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..lazy_torch import torch
from ..linear_algebra import eigh, qr, svd
from ..task_vectors import LowRank, TaskVectors
from .compact_svd import gram, relative_cut, stays_low_rank


@dataclass(frozen=True, slots=True)
class CoreTaskVectors:
    """The matrices C_i, (P, P'), with v_i = L^T C_i R for every expert; one at a time.

    left : Tensor, (P, M), L, orthonormal rows
    right : Tensor, (P', K), R, orthonormal rows
    source : the task vectors v_i
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
    """Return the coordinates of the experts in orthonormal bases of their common column and row space.

    LoRA experts v_i = B_i A_i: left singular vectors of the stacked B_i and right ones of the stacked A_i, the bases of
    the paper. Dense experts: left singular vectors of the experts side by side and right ones of the experts on top of
    each other, from the Gram matrices sum_i v_i v_i^T and sum_i v_i^T v_i. Bases are in descending order of singular
    value, without null directions.

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
    """Return the right singular vectors of the experts on top of each other, or the left ones of them side by side.

    Parameters
    ----------
    by_rows : True: on top of each other, for a basis of the rows; False: side by side, for one of the columns

    Returns
    -------
    basis : Tensor, (P, K) or (P, M), float64, rows in descending order of singular value
    dtype : of the experts
    """
    total: torch.Tensor | None = None
    dtype = torch.float64
    for vector in task_vectors:
        full = vector.dense() if isinstance(vector, LowRank) else vector
        products = gram(full.T if by_rows else full)
        dtype = full.dtype
        total = products if total is None else total.add_(products)
    assert total is not None, "task vectors contain at least one expert"
    eigenvalues, vectors = eigh(total)
    return _above_cut(eigenvalues, vectors, task_vectors.shape), dtype


def _row_space(rows: torch.Tensor) -> torch.Tensor:
    """Return the right singular vectors of a wide matrix as rows, above the relative cut, in the dtype of the input."""
    basis, core = qr(rows.double().T)
    left, values, _ = svd(core)
    keep = values > relative_cut((rows.shape[0], rows.shape[1])) * values[:1]
    return (basis @ left[:, keep]).T.to(rows.dtype).contiguous()


def _above_cut(eigenvalues: torch.Tensor, vectors: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return the eigenvectors above the squared relative cut as rows, descending."""
    keep = (eigenvalues > relative_cut(shape) ** 2 * eigenvalues[-1]) & (eigenvalues > 0)
    return vectors[:, keep].T.flip(0)
