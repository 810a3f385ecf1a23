"""The largest singular value of independent errors, from the sums of their variances over rows and columns.

Shapes: M = out features, K = in features.
"""

from __future__ import annotations

import math

from ..lazy_torch import torch

# 99.9% quantile of the Tracy-Widom law of order 1: the largest singular value of pure noise exceeds the level in one
# matrix of a thousand.
_QUANTILE = 3.27


def expected_norm(rows: torch.Tensor, columns: torch.Tensor) -> float:
    """Return the expected largest singular value of independent errors, from the sums of their variances.

    The variance of entry ij counts as r_i c_j / sum(r). The norm of such a matrix is, for large matrices, the smallest
    L for which a = 1 / (L - r b'), b = 1 / (L - c a'), a' = sum(r a) / sum(r), b' = sum(c b) / sum(r) has a positive
    solution. It is between the square root of the largest sum and the sum of the two largest roots, and is found by
    bisection to 0.1%. Rows or columns that are larger than others count as they should; the mean variance does not.

    Cost: 1000 operations on vectors of the two lengths.

    Parameters
    ----------
    rows : Tensor, (M,), sums of the variances of each row
    columns : Tensor, (K,), of each column

    References
    ----------
    F. Lehner, Computing norms of free operators with matrix coefficients, Amer. J. Math. 121 (1999), for the equation;
    Matrix concentration inequalities and free probability, arXiv:2108.06312, for its use on random matrices
    """
    r, c = (sums[sums > 0].to("cpu", torch.float64) for sums in (rows, columns))
    if not len(r) or not len(c):
        return 0.0
    roots = math.sqrt(float(r.max())), math.sqrt(float(c.max()))
    low, high = max(roots), sum(roots)
    unit = high  # the equation in units of the upper bound: no overflow, no underflow
    r, c = r / unit**2, c / unit**2
    low, high = low / unit, 1.0
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _has_solution(r, c, middle) else (middle, high)
    return high * unit


def _has_solution(r: torch.Tensor, c: torch.Tensor, norm: float) -> bool:
    """Return whether the iteration of `expected_norm` from 0 converges to a positive solution."""
    total, b = float(r.sum()), 0.0
    for _ in range(100):
        left = norm - r * b
        if float(left.min()) <= 0.0:
            return False
        right = norm - c * (float((r / left).sum()) / total)
        if float(right.min()) <= 0.0:
            return False
        previous, b = b, float((c / right).sum()) / total
        if b - previous <= 1e-6 * b:
            return True
    return False


def noise_level(rows: torch.Tensor, columns: torch.Tensor) -> float:
    """Return the singular value at or below which a direction is noise: `expected_norm` and a margin.

    The margin is that of the Tracy-Widom law for as many rows and columns as carry the noise: 1.24 times the norm for
    8 x 8, 1.03 for 200 x 200, 1.004 for 4096 x 4096.

    References
    ----------
    I. M. Johnstone, On the distribution of the largest eigenvalue in principal components analysis,
    doi:10.1214/aos/1009210544
    """
    norm = expected_norm(rows, columns)
    if norm == 0.0:
        return 0.0
    energy = float(rows.sum())
    first = math.sqrt(max(energy / float(rows.max()) - 1.0, 0.5))
    second = math.sqrt(max(energy / float(columns.max()), 1.0))
    spread = (first + second) * (1.0 / first + 1.0 / second) ** (1.0 / 3.0)
    return norm * math.sqrt(1.0 + _QUANTILE * spread / (first + second) ** 2)
