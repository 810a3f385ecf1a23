"""Products x^T x, which are symmetric: compute the lower triangle by blocks, and mirror it.

Blocks of 256 columns need 56% to 63% of the products for 1024 to 4096 columns, and on a CPU as much of the time.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..lazy_torch import torch

_BLOCK = 256  # columns; narrower blocks make matrix products slower
_MIRROR_BLOCK = 1024  # rows copied at a time; limits the work space


def gram(x: torch.Tensor) -> torch.Tensor:
    """Return x^T x (K, K), exactly symmetric, of x (M, K); dtype and device of x."""
    found = torch.empty((x.shape[1], x.shape[1]), dtype=x.dtype, device=x.device)
    for start, stop in _row_blocks(x):
        torch.mm(x[:, start:stop].T, x[:, :stop], out=found[start:stop, :stop])
    mirror_lower_triangle(found)
    return found


def add_gram_lower(total: torch.Tensor, x: torch.Tensor) -> None:
    """Add x^T x, x (M, K), to the lower triangle of total (K, K); what is above it is undefined afterwards."""
    for start, stop in _row_blocks(x):
        total[start:stop, :stop].addmm_(x[:, start:stop].T, x[:, :stop])


def mirror_lower_triangle(matrix: torch.Tensor) -> None:
    """Make a matrix (K, K) exactly symmetric, from its lower triangle."""
    for start in range(0, matrix.shape[0], _MIRROR_BLOCK):
        stop = min(start + _MIRROR_BLOCK, matrix.shape[0])
        matrix[:start, start:stop] = matrix[start:stop, :start].T
        diagonal = matrix[start:stop, start:stop]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)


def _row_blocks(x: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Yield start and stop of blocks of columns of x. On a GPU there is one: small products would not fill it."""
    columns = x.shape[1]
    block = columns if x.is_cuda else _BLOCK
    for start in range(0, columns, max(1, block)):
        yield start, min(start + block, columns)
