"""Cuts below which an eigenvalue or singular value is rounding noise.

docs/decisions/010-null-cut.md has the measurements behind the constants.
"""

from __future__ import annotations

import math

from ..lazy_torch import torch

# Epsilon of float32 products by torch.get_float32_matmul_precision(): "high" and "medium" use TF32 and bfloat16.
_MATMUL_EPSILON = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}


def arithmetic_epsilon(dtype: torch.dtype) -> float:
    """Return the epsilon of matrix products in `dtype`: that of TF32 or bfloat16 where torch is set to use them."""
    epsilon = torch.finfo(dtype).eps
    if dtype == torch.float32:
        epsilon = max(epsilon, _MATMUL_EPSILON[torch.get_float32_matmul_precision()])
    return epsilon


def noise_multiple(columns: int) -> float:
    """Return the level of rounding noise in units of epsilon times the largest value, with a margin of two to three.

    Rounding errors grow with the square root of the order: measured 1.2 at 64 columns, 2.4 at 256, 4.2 at 1024, 4.4 at
    2048.
    """
    return max(4.0, math.sqrt(columns) / 4)


def eigenvalue_cut(largest: float, smallest: float, columns: int, epsilon: float) -> float:
    """Return the level at or below which an eigenvalue of the interference operator is rounding noise.

    Parameters
    ----------
    largest, smallest : float
        Extreme eigenvalues as computed. The operator is positive semi-definite: a negative `smallest` is noise.
    columns : int
        Order of the operator.
    epsilon : float
        `arithmetic_epsilon` of the dtype in which the operator was summed.
    """
    return max(noise_multiple(columns) * epsilon * largest, -2.0 * smallest, 0.0)


def singular_value_cut(largest: float, columns: int, epsilon: float) -> float:
    """Return the level at or below which a singular value of the stacked task vectors is rounding noise."""
    return noise_multiple(columns) * epsilon * largest
