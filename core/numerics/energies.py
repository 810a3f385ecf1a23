"""Row energies and Frobenius norms of matrices, with squares summed in float64.

In float32 a sum of 10^8 squares has an error of 1%, and squares of small elements underflow.
"""

from __future__ import annotations

from .lazy_torch import torch
from .linear_algebra import vector_norms

# Elements converted to float64 at a time: few enough for a CPU's cache, enough to use all of a GPU.
_CPU_BLOCK = 2**18
_GPU_BLOCK = 2**24


def row_energies(matrix: torch.Tensor) -> torch.Tensor:
    """Return ||row||^2 of every row of a matrix (R, X), as (R,) float64 on its device."""
    num_rows, num_columns = matrix.shape
    energies = torch.zeros(num_rows, dtype=torch.float64, device=matrix.device)
    if matrix.numel() == 0:
        return energies
    block = _CPU_BLOCK if matrix.device.type == "cpu" else _GPU_BLOCK
    rows = max(1, block // num_columns)
    for start in range(0, num_rows, rows):
        energies[start : start + rows] = vector_norms(matrix[start : start + rows].double(), dim=1)
    return energies.square_()


def frobenius_norm(matrix: torch.Tensor) -> float:
    """Return ||matrix||_F."""
    return float(row_energies(matrix).sum().sqrt())
