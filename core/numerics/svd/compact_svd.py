"""SVD and polar factors without the null space, of dense matrices and of LoRA factors.

Methods that replace singular values (Iso-C, TSV-M, ...) give every direction a new weight. The SVD of a rank-deficient
matrix also returns directions of the null space, which are arbitrary. Directions below a relative cut are therefore
left out, and polar factors use only singular values above a cut.

float32 matrices are decomposed by the eigenvectors of their float64 Gram matrix. Squaring halves the number of digits,
but float64 has more than twice those of float32: on prescribed spectra, values above the cut agree with a float64 SVD
to 1e-7. The cost is that of a float32 SVD on a CPU and far less on a GPU. float64 matrices use an SVD.

Shapes: M = out features, K = in features, n = min(M, K), R = number of directions, P = rank of the factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..lazy_torch import torch
from ..linear_algebra import eigh, frobenius, qr, svd
from ..noise.shrinkage import shrink_singular_values
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import product
from ..task_vectors import LowRank

#: Epsilon of the data. Checkpoints store float32 or less, so it does not depend on the arithmetic: in float64 the
#: rounding of a stored float32 (or of a product of LoRA factors) must not count as a direction.
DATA_EPSILON = 2.0**-23
#: Relative cut of polar factors. A singular value s of a set of unit vectors multiplies their error by 1/s. Their
#: rounding is DATA_EPSILON: below this cut only error is left. A larger cut drops directions of correlated experts
#: (1e-4: results 13 to 28% off the published code, which is stable there; 1e-6 agrees with it).
POLAR_CUT = 1e-6
#: Smallest cut of each algorithm, relative to the largest value: smaller values are not resolved.
_GRAM_RESOLUTION = 1e-7
_SVD_RESOLUTION = 1e-14
_BLOCK = 1024  # columns converted to float64 at a time


def relative_cut(shape: tuple[int, int]) -> float:
    """Return 4 eps sqrt(max(M, K)): singular values below this fraction of the largest are rounding of the data."""
    return 4.0 * DATA_EPSILON * math.sqrt(max(shape))


@dataclass(frozen=True, slots=True)
class CompactSVD:
    """Singular triplets above a cut.

    left : Tensor, (R, M), row k is u_k
    values : Tensor, (R,), descending
    right : Tensor, (R, K), row k is v_k
    rank : int, number of directions above the cut; R is smaller where `max_directions` is
    noise_floor : level at or below which directions were left out as rounding of storage; 0 for none
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    rank: int
    noise_floor: float = 0.0

    @property
    def num_directions(self) -> int:
        """R."""
        return self.values.shape[0]


def compact_svd(
    vector: torch.Tensor | LowRank,
    *,
    cut: float | None = None,
    floor: float = 0.0,
    max_directions: int | None = None,
    noise: StorageNoise | None = None,
) -> CompactSVD:
    """Return the singular triplets above max(cut * largest value, floor), at most `max_directions` of them.

    Cost: dense 4 n M K + 9 n^3 flops in float64 and about 11 n^2 float32 elements of work space; factors
    10 (M + K) P^2 + 22 P^3 flops and no M x K matrix.

    Parameters
    ----------
    vector : Tensor (M, K) float32 or float64, or LowRank
    cut : relative to the largest value. None for `relative_cut`; 0.0 for all directions that the arithmetic resolves,
        where values are multiplied and not replaced
    floor : absolute cut, for sums of matrices that may have cancelled
    max_directions : None for all
    noise : of the matrix, from the rounding of storage. Where `StorageNoise.floor` is not 0, it is a floor too, and
        values are shrunk if the noise says so

    Returns
    -------
    CompactSVD, in the dtype and on the device of the input
    """
    rows, columns = vector.shape
    if cut is None:
        cut = relative_cut((rows, columns))
    limits = _Limits(cut, floor, max_directions, noise)
    found = _decompose(vector, limits)
    if noise is None or not noise.shrinks or found.noise_floor == 0.0:
        return found
    return replace(found, values=shrink_singular_values(found.values, noise.shape, noise.deviation))


@dataclass(frozen=True, slots=True)
class _Limits:
    """Which directions are kept, as in `compact_svd`."""

    cut: float
    floor: float
    max_directions: int | None
    noise: StorageNoise | None


def _decompose(vector: torch.Tensor | LowRank, limits: _Limits) -> CompactSVD:
    rows, columns = vector.shape
    if isinstance(vector, LowRank):
        return _from_factors(vector, limits)
    assert vector.dtype in (torch.float32, torch.float64), vector.dtype
    if min(rows, columns) == 0:
        return _empty(vector, rows, columns)
    if vector.dtype == torch.float32:
        return _from_gram(vector, limits)
    left, values, right = svd(vector)
    rank, kept, noise_floor = _count_above(values, limits, _SVD_RESOLUTION)
    return CompactSVD(left.T[:kept].contiguous(), values[:kept], right[:kept], rank, noise_floor)


def lift_svd(svd: CompactSVD, left_basis: torch.Tensor | None, right_basis: torch.Tensor | None) -> CompactSVD:
    """Return the SVD of L^T X R from that of X, for bases L and R with orthonormal rows; None is the identity."""
    left = svd.left if left_basis is None else product(svd.left, left_basis)
    right = svd.right if right_basis is None else product(svd.right, right_basis)
    return CompactSVD(left, svd.values, right, svd.rank, svd.noise_floor)


def polar_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Return the polar factor (X X^T)^(-1/2) X of rows X: the closest orthonormal rows.

    The inverse root is a pseudo-inverse with the relative cut POLAR_CUT, so linearly dependent rows do not depend on a
    basis of the null space: N equal rows x give x / sqrt(N) each.

    Cost: 4 R^2 L + 9 R^3 flops in float64; 6 R^2 float64 elements besides input and result. The Gram matrix is accurate
    enough, because the squared cut of 1e-12 is far above the epsilon of float64.

    Parameters
    ----------
    vectors : Tensor, (R, L), unit rows

    Returns
    -------
    Tensor, (R, L)

    References
    ----------
    N. J. Higham, Computing the polar decomposition, SIAM J. Sci. Stat. Comput. 7 (1986)
    """
    if vectors.shape[0] == 0:
        return vectors
    eigenvalues, basis = _independent_part(vectors)
    return _multiplied((basis * eigenvalues.rsqrt()) @ basis.T, vectors)


def polar_decomposition(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the polar factor of rows X as `polar_rows` does, and the coordinates of X in it, (X X^T)^(1/2).

    Cost: that of `polar_rows` and 2 R^3; 2 R^2 float64 elements more.

    Parameters
    ----------
    vectors : Tensor, (R, L), unit rows

    Returns
    -------
    rows : Tensor, (R, L), dtype of `vectors`
    coordinates : Tensor, (R, R), float64, symmetric; coordinates @ rows = vectors
    """
    if vectors.shape[0] == 0:
        return vectors, vectors.new_zeros((0, 0), dtype=torch.float64)
    eigenvalues, basis = _independent_part(vectors)
    rows = _multiplied((basis * eigenvalues.rsqrt()) @ basis.T, vectors)
    return rows, (basis * eigenvalues.sqrt()) @ basis.T


def _independent_part(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of the Gram matrix of rows above the square of POLAR_CUT, and their eigenvectors."""
    eigenvalues, basis = eigh(gram(vectors))
    keep = eigenvalues > POLAR_CUT**2 * eigenvalues[-1]
    return eigenvalues[keep], basis[:, keep]


def _multiplied(root: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return root @ vectors in the dtype of `vectors`, in float64 a block of columns at a time."""
    result = torch.empty_like(vectors)
    for start in range(0, vectors.shape[1], _BLOCK):
        span = slice(start, start + _BLOCK)
        result[:, span] = root @ vectors[:, span].double()
    return result


def task_vector_norm(vector: torch.Tensor | LowRank) -> float:
    """Return ||v||_F, computed in float64; of factors without forming their product."""
    if isinstance(vector, LowRank):
        square = (gram(vector.left.T) * gram(vector.right)).sum()
        return math.sqrt(max(square.item(), 0.0))
    return frobenius(vector, torch.float64)


def rms_singular_value(vector: torch.Tensor | LowRank) -> float:
    """Return ||v||_F / sqrt(r), r = upper bound of the rank: the root mean square of the singular values.

    It is between sigma_1 / sqrt(r) and sigma_1, and needs no decomposition.
    """
    bound = min(vector.shape)
    if isinstance(vector, LowRank):
        bound = min(bound, vector.rank)
    return task_vector_norm(vector) / math.sqrt(max(bound, 1))


def svd_flops(shape: tuple[int, int], rank: int | None = None) -> float:
    """Return the projected flops of `compact_svd` of a dense matrix, or of factors of that rank."""
    rows, columns = shape
    if rank is not None:
        return 10.0 * (rows + columns) * rank**2 + 22.0 * rank**3
    small = min(shape)
    return 4.0 * small * rows * columns + 9.0 * small**3


def svd_elements(shape: tuple[int, int], rank: int | None = None) -> int:
    """Return the projected peak memory of `compact_svd` in float32 elements, input and result included."""
    rows, columns = shape
    if rank is not None:
        return 6 * (rows + columns) * rank + 16 * rank**2
    small, long = min(shape), max(shape)
    decomposing = rows * columns + 11 * small**2  # LAPACK's syevd takes five float64 matrices of its own
    multiplying = 2 * rows * columns + 4 * min(_BLOCK, long) * small + 6 * small**2
    return max(decomposing, multiplying)


def stays_low_rank(shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> bool:
    """Return True when the stacked factors of all experts have fewer elements than the dense matrix."""
    rows, columns = shape
    return all_low_rank and sum(max_ranks) * (rows + columns) < rows * columns


def _from_gram(matrix: torch.Tensor, limits: _Limits) -> CompactSVD:
    is_wide = matrix.shape[0] <= matrix.shape[1]
    short = matrix if is_wide else matrix.T  # (n, L), n <= L
    eigenvalues, vectors = eigh(gram(short))
    values = eigenvalues.flip(0).clamp_min(0.0).sqrt()
    rank, kept, noise_floor = _count_above(values, limits, _GRAM_RESOLUTION)
    near = vectors.T[vectors.shape[1] - kept :].flip(0)  # (R, n), descending
    del vectors
    far = torch.empty((kept, short.shape[1]), dtype=matrix.dtype, device=matrix.device)
    squares = torch.zeros(kept, dtype=torch.float64, device=matrix.device)
    for start in range(0, short.shape[1], _BLOCK):
        block = near @ short[:, start : start + _BLOCK].double()
        squares += block.square().sum(1)
        far[:, start : start + _BLOCK] = block
    # ||u_k^T A|| is far more accurate than the root of the eigenvalue, which has an absolute error of eps lambda_1
    values = squares.sqrt()
    far /= values.to(far.dtype).unsqueeze(1)
    order = values.argsort(descending=True, stable=True)
    if not torch.equal(order, torch.arange(kept, device=order.device)):
        values, near, far = values[order], near[order], far[order]
    near = near.to(matrix.dtype)
    left, right = (near, far) if is_wide else (far, near)
    return CompactSVD(left, values.to(matrix.dtype), right, rank, noise_floor)


def _from_factors(vector: LowRank, limits: _Limits) -> CompactSVD:
    rows, columns = vector.shape
    if min(rows, columns, vector.rank) == 0:
        return _empty(vector.left, rows, columns)
    # float64 costs little on small factors, and leaves only the rounding of the factors themselves
    basis_left, core_left = qr(vector.left.double())
    basis_right, core_right = qr(vector.right.double().T)
    left, values, right = svd(core_left @ core_right.T)
    rank, kept, noise_floor = _count_above(values, limits, _SVD_RESOLUTION)
    dtype = vector.left.dtype
    return CompactSVD(
        (basis_left @ left[:, :kept]).T.to(dtype).contiguous(),
        values[:kept].to(dtype),
        (right[:kept] @ basis_right.T).to(dtype),
        rank,
        noise_floor,
    )


def gram(rows: torch.Tensor) -> torch.Tensor:
    """Return X X^T in float64, (R, R), of rows X (R, L); a block of columns is converted at a time."""
    size = rows.shape[0]
    products = torch.zeros((size, size), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].double()
        products.addmm_(block, block.T)
    return products


def _count_above(values: torch.Tensor, limits: _Limits, resolution: float) -> tuple[int, int, float]:
    """Return the number of values above all limits, the same limited to `max_directions`, and the noise floor."""
    noise_floor = 0.0 if limits.noise is None else limits.noise.floor(values)
    limit = max(max(limits.cut, resolution) * values[0].item(), limits.floor, noise_floor)
    rank = int((values > limit).sum().item())
    return rank, rank if limits.max_directions is None else min(rank, limits.max_directions), noise_floor


def _empty(like: torch.Tensor, rows: int, columns: int) -> CompactSVD:
    return CompactSVD(like.new_zeros((0, rows)), like.new_zeros(0), like.new_zeros((0, columns)), 0)
