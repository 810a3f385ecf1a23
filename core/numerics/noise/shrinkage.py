"""Optimal shrinkage of singular values under noise of known size (Gavish and Donoho, Frobenius loss)."""

from __future__ import annotations

import math

from ..lazy_torch import torch


def shrink_singular_values(values: torch.Tensor, shape: tuple[int, int], deviation: float) -> torch.Tensor:
    """Return the singular values that minimize the expected squared error, 0 at and below the edge of the noise.

        y = value / (s sqrt(n)), beta = m / n:   s sqrt(n) sqrt((y^2 - beta - 1)^2 - 4 beta) / y  for y > 1 + sqrt(beta)

    n is the longer and m the shorter side. A singular value of signal plus noise is larger than that of the signal, and
    its vectors point elsewhere; the shrunk value makes up for both.

    Parameters
    ----------
    values : Tensor, (R,), of signal plus noise
    shape : of the matrix
    deviation : s, standard deviation of the independent entries of the noise

    Returns
    -------
    Tensor, (R,), the dtype of `values`; `values` themselves without noise

    References
    ----------
    M. Gavish and D. L. Donoho, Optimal shrinkage of singular values, arXiv:1405.7511, equation 7
    """
    if deviation <= 0.0 or 0 in shape:
        return values
    beta = min(shape) / max(shape)
    unit = deviation * math.sqrt(max(shape))
    scaled = values.double() / unit
    above = scaled > 1.0 + math.sqrt(beta)
    safe = torch.where(above, scaled, 2.0 + beta)
    inner = ((safe.square() - beta - 1.0).square() - 4.0 * beta).clamp_min(0.0)
    return torch.where(above, unit * inner.sqrt() / safe, 0.0).to(values.dtype)
