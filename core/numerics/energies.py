"""Squared norms, summed in float64: over 10^8 elements float32 is off by 1%, and squares of small ones underflow."""

from __future__ import annotations

from .lazy_torch import torch

# Elements that are converted to float64 at a time: within the cache of a CPU core, enough to fill a GPU.
_CPU_BLOCK = 2**18
_GPU_BLOCK = 2**24


def row_energies(matrix: torch.Tensor) -> torch.Tensor:
    """||row||^2 of every row of (R, X), as (R,) float64 on its device."""
    energies = torch.zeros(matrix.shape[0], dtype=torch.float64, device=matrix.device)
    if matrix.numel() == 0:
        return energies
    block = _CPU_BLOCK if matrix.device.type == "cpu" else _GPU_BLOCK
    rows = max(1, block // matrix.shape[1])
    for part, its_energies in zip(matrix.split(rows), energies.split(rows), strict=True):
        torch.linalg.vector_norm(part.double(), dim=1, out=its_energies)
    return energies.square_()


def frobenius_norm(matrix: torch.Tensor) -> float:
    """||matrix||_F."""
    return float(row_energies(matrix).sum().sqrt())
