"""Coordinates of the experts in their common column and row space: smaller matrices that determine them.

Shapes: M = out features, K = in features, P and P' = dimensions of the common column and row space, N = experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..lazy_torch import torch
from ..linear_algebra import eigh, frobenius, qr, svd
from ..noise.combined import on_top, side_by_side
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import product
from ..task_vectors import LowRank, TaskVectors, noise_of, noises_of
from .compact_svd import gram, relative_cut, stays_low_rank

_TINY = 1e-300


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

    def storage_noise(self, index: int) -> StorageNoise | None:
        """As `WithStorageNoise`: the part of an expert's noise in these coordinates."""
        noise = noise_of(self.source, index)
        return None if noise is None else noise.projected(*self.shape)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for vector in self.source:
            if isinstance(vector, LowRank):
                yield product(product(self.left, vector.left), product(vector.right, self.right.T))
            else:
                yield product(product(self.left, vector), self.right.T)


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
        left = _common_row_space([vector.left.T for vector in stack])
        right = _common_row_space([vector.right for vector in stack])
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
    noises = noises_of(task_vectors)
    noise = on_top(noises) if by_rows else side_by_side(noises)
    eigenvalues, vectors = eigh(total)
    return _above_cut(eigenvalues, vectors, task_vectors.shape, noise), dtype


def _common_row_space(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return an orthonormal basis of the rows of all factors, in their dtype.

    First the right singular vectors of the stacked factors, as in the paper. A factor much smaller than the others, as
    the B of one adapter beside others with a B a million times as large, lies below their cut: the directions that the
    factors add when each has norm 1 follow.
    """
    stacked = torch.cat(list(factors)).double()
    basis = _right_singular_vectors(stacked, None)
    unit = torch.cat([factor.double() / max(frobenius(factor, torch.float64), _TINY) for factor in factors])
    rest = unit - (unit @ basis.T) @ basis
    rest -= (rest @ basis.T) @ basis
    added = _right_singular_vectors(rest, frobenius(unit, torch.float64))
    return torch.cat([basis, added]).to(factors[0].dtype)


def _right_singular_vectors(rows: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Return the right singular vectors as rows, above the cut relative to `scale` (None: to the largest value)."""
    basis, core = qr(rows.T)
    left, values, _ = svd(core)
    largest = values[:1] if scale is None else scale
    keep = values > relative_cut((rows.shape[0], rows.shape[1])) * largest
    return (basis @ left[:, keep]).T.contiguous()


def _above_cut(
    eigenvalues: torch.Tensor, vectors: torch.Tensor, shape: tuple[int, int], noise: StorageNoise | None
) -> torch.Tensor:
    """Return the eigenvectors above the squares of the relative cut and of the noise floor as rows, descending."""
    level = 0.0 if noise is None else noise.floor(eigenvalues.clamp_min(0.0).sqrt())
    keep = (eigenvalues > relative_cut(shape) ** 2 * eigenvalues[-1]) & (eigenvalues > level**2)
    return vectors[:, keep].T.flip(0)
