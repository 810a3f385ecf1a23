"""Products x^T x, which are symmetric: compute the lower triangle by blocks, and mirror it.

Blocks of 256 columns need 56% to 63% of the products for 1024 to 4096 columns, and on a CPU as much of the time.
"""

from __future__ import annotations

from ..lazy_torch import torch
from .matrix_product import add_product

_BLOCK = 256  # columns; narrower blocks make matrix products slower
_ROWS = 512  # of x at a time: limits the work space of the transposed rows, and the rounding errors of long sums
_MIRROR_BLOCK = 1024  # rows copied at a time; limits the work space


def gram(x: torch.Tensor, divisor: float = 1.0) -> torch.Tensor:
    """Return y^T y (K, K), exactly symmetric, of y = x / divisor, x (M, K); dtype and device of x."""
    found = torch.zeros((x.shape[1], x.shape[1]), dtype=x.dtype, device=x.device)
    add_gram_lower(found, x, divisor)
    mirror_lower_triangle(found)
    return found


def add_gram_lower(total: torch.Tensor, x: torch.Tensor, divisor: float = 1.0) -> None:
    """Add y^T y, y = x / divisor, x (M, K), to the lower triangle of total (K, K).

    What is above the diagonal is undefined afterwards. y is made for some rows of x at a time.
    """
    # On a GPU there is one block: small products would not fill it.
    num_rows, num_columns = x.shape if x.is_cuda else (_ROWS, _BLOCK)
    for first in range(0, x.shape[0], max(1, num_rows)):
        rows = x[first : first + num_rows].T / divisor
        if not x.is_cuda:
            rows = rows.contiguous()  # oneDNN needs rows without gaps between them
        for start in range(0, x.shape[1], max(1, num_columns)):
            stop = min(start + num_columns, x.shape[1])
            add_product(total[start:stop, :stop], rows[start:stop], rows[:stop].T)


def mirror_lower_triangle(matrix: torch.Tensor) -> None:
    """Make a matrix (K, K) exactly symmetric, from its lower triangle."""
    for start in range(0, matrix.shape[0], _MIRROR_BLOCK):
        stop = min(start + _MIRROR_BLOCK, matrix.shape[0])
        matrix[:start, start:stop] = matrix[start:stop, :start].T
        diagonal = matrix[start:stop, start:stop]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)
