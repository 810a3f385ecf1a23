"""The interference spectrum from an SVD of the stacked experts: the row-space route, for LoRA or few rows.

    B = [v_1 / ||v_1||; ...; v_N / ||v_N||],   C = B^T B,   B = U diag(sigma) V^T,   lambda_k = sigma_k^2,   q_k = V e_k

With U_i the rows of U of expert i, v_i = ||v_i|| U_i diag(sigma) V^T, and therefore

    S q_k = sum_i ||v_i|| sigma_k U_i e_k,   D q_k = sum_i ||v_i|| sigma_k [U_i diag(sigma^2) U_i^T] U_i e_k.

For a LoRA expert v = L A, the rows of B are F of v = Q F with orthonormal columns in Q, and the left vectors are
multiplied by Q at the end. No K x K and no M x K matrix is formed. Nothing is squared before it is decomposed, so
singular values are resolved down to epsilon times the largest; eigenvalues of C give them only down to its square root.

Shapes: M = out features (D1), K = in features (D2), P = sum of the experts' row dimensions, R = number of directions,
N = experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..energies import frobenius_norm, row_energies
from ..lazy_torch import torch
from ..linear_algebra import qr, svd
from ..noise.combined import describe_noise, on_top
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import add_product, product
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors, noise_of
from .gram_route import empty_spectrum
from .operator import factor_orthonormal
from .rounding import arithmetic_epsilon, singular_value_cut


@dataclass(frozen=True, slots=True)
class _ExpertRows:
    """One expert as v = norm * columns @ unit_rows.

    columns : Tensor (M, P_i) with orthonormal columns, or None for the identity (dense experts)
    unit_rows : Tensor (P_i, K) of Frobenius norm 1; no rows for an expert that is 0
    """

    norm: float
    columns: torch.Tensor | None
    unit_rows: torch.Tensor


class _LeftVectors:
    """Sum of (columns_i @ rows_i)^T over experts, (R, M), of rows (P_i, R).

    Experts of few rows are multiplied together: each product reads and writes the whole sum.
    """

    def __init__(self, total: torch.Tensor) -> None:
        self.total = total
        self._columns: list[torch.Tensor] = []
        self._rows: list[torch.Tensor] = []

    def add(self, columns: torch.Tensor | None, rows: torch.Tensor) -> None:
        if columns is None:
            self.total += rows.T
            return
        self._columns.append(columns)
        self._rows.append(rows)
        if sum(map(len, self._rows)) >= _ROWS_TOGETHER:
            self.finish()

    def finish(self) -> None:
        """Add what has been collected."""
        if self._rows:
            add_product(self.total, torch.cat(self._rows).T, torch.cat(self._columns, dim=1).T)
        self._columns, self._rows = [], []


# Rows of experts in one product: enough that its operations, not the memory of the sum, take the time.
_ROWS_TOGETHER = 256


def decompose_row_space(task_vectors: TaskVectors) -> Spectrum:
    """Return the interference spectrum without forming C.

    Cost: about 8 K P^2 + 24 P^3 + 4 M P R flops; 4 P K + M P elements besides the inputs and the spectrum.

    Returns
    -------
    Spectrum as from `gram_route.spectrum_of_operator`, with all directions resolved and the statistic "expert_energy"
    (R, N)

    References
    ----------
    SWUDI, arXiv:2606.07289, for the problem; the identities above are derived here
    """
    shape = task_vectors.shape
    experts = list(_rows_of_experts(task_vectors))
    norms = torch.tensor([expert.norm for expert in experts], dtype=torch.float64)
    like = experts[0].unit_rows
    active = [(index, expert) for index, expert in enumerate(experts) if expert.norm > 0]
    if not active:
        return empty_spectrum("interference", shape, norms, like)

    stacked = torch.cat([expert.unit_rows for _, expert in active])
    parts = [expert.unit_rows.shape[0] for _, expert in active]
    # after a QR the SVD has order P instead of K
    basis, triangle = qr(stacked.T)
    del stacked
    left, sigma, coefficients = svd(triangle.T)
    largest = float(sigma[0])
    cut = singular_value_cut(largest, shape[1], arithmetic_epsilon(like.dtype))
    noise = on_top([_unit_noise(task_vectors, index, expert) for index, expert in active])
    level = 0.0 if noise is None else noise.floor(sigma)
    num_kept = int((sigma > cut).sum())
    left, sigma = left[:, :num_kept], sigma[:num_kept]
    above = sigma > level  # directions of noise are kept for the anchor, and are not resolved
    right = product(coefficients[:num_kept], basis.T)
    del basis, triangle

    sums, targets = (_LeftVectors(like.new_zeros((num_kept, shape[0]))) for _ in range(2))
    shares = torch.zeros((num_kept, len(experts)), dtype=torch.float64, device=like.device)
    first = 0
    for (index, expert), num_rows in zip(active, parts, strict=True):
        U_i = left[first : first + num_rows]
        first += num_rows
        scaled = U_i * (expert.norm * sigma)
        sums.add(expert.columns, scaled)
        if len(active) > 1:
            targets.add(expert.columns, product(product(U_i * sigma**2, U_i.T), scaled))
        shares[:, index] = row_energies(U_i.T) * sigma.double() ** 2
    sums.finish()
    targets.finish()
    total, target = sums.total, targets.total
    if len(active) == 1:
        target = total * (sigma**2).unsqueeze(1)  # D = v C
    return Spectrum(
        kind="interference",
        shape=shape,
        num_experts=len(experts),
        values=sigma**2,
        right=right,
        left={"target": target, "sum": total},
        statistics={
            "target_energy": row_energies(target),
            "sum_energy": row_energies(total),
            "resolved": above.double(),
            "expert_energy": shares,
            **({"above_noise": above.double()} if level > 0 else {}),
        },
        info={
            "route": "row_space",
            "expert_norms": [float(norm) for norm in norms],
            "value_cut": max(cut, level) ** 2,
            "num_resolved": int(above.sum()),
            **({} if noise is None else describe_noise(noise, level, noise.level**2, noise.level / largest)),
        },
    )


def _unit_noise(task_vectors: TaskVectors, index: int, expert: _ExpertRows) -> StorageNoise | None:
    noise = noise_of(task_vectors, index)
    return None if noise is None else noise.times(1.0 / expert.norm)


def _rows_of_experts(task_vectors: TaskVectors) -> Iterator[_ExpertRows]:
    """Iterate over the normalized experts."""
    for task_vector in task_vectors:
        if isinstance(task_vector, LowRank):
            columns, rows = factor_orthonormal(task_vector)
        else:
            columns, rows = None, task_vector
        norm = frobenius_norm(rows)
        yield _ExpertRows(norm, columns, rows / norm if norm > 0 else rows[:0])
