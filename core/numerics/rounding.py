"""How far rounding reaches in a spectrum: below the cut an eigenvalue cannot be told from zero.

docs/decisions/010-null-cut.md has the measurements behind the constants.
"""

from __future__ import annotations

import math

from .lazy_torch import torch

# float32 products may be rounded to fewer bits on request (TF32, bf16 splits): the unit of rounding is then theirs.
_MATMUL_EPSILON = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}


def arithmetic_epsilon(dtype: torch.dtype) -> float:
    """Unit of rounding of matrix products in `dtype`, TF32 included when it has been asked for."""
    epsilon = torch.finfo(dtype).eps
    if dtype == torch.float32:
        epsilon = max(epsilon, _MATMUL_EPSILON[torch.get_float32_matmul_precision()])
    return epsilon


def noise_multiple(columns: int) -> float:
    """Height of the rounding noise in units of epsilon times the largest value, with a margin of two to three.

    Rounding errors add up like a random walk: measured 1.2 at 64 columns, 2.4 at 256, 4.2 at 1024, 4.4 at 2048.
    """
    return max(4.0, math.sqrt(columns) / 4)


def eigenvalue_cut(largest: float, smallest: float, columns: int, epsilon: float) -> float:
    """An eigenvalue of the interference operator at or below this is rounding noise.

    Parameters
    ----------
    largest, smallest : float
        Extreme eigenvalues as computed. The operator has no negative ones, so a negative `smallest` measures the noise.
    columns : int
        Order of the operator.
    epsilon : float
        Unit of rounding of the arithmetic that formed it.
    """
    return max(noise_multiple(columns) * epsilon * largest, -2.0 * smallest, 0.0)


def singular_value_cut(largest: float, columns: int, epsilon: float) -> float:
    """The same for singular values of the stacked task vectors, which were never squared."""
    return noise_multiple(columns) * epsilon * largest
