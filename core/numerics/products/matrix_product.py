"""Matrix products in float32 on processors, by oneDNN where MKL does not use the processor's widest instructions.

torch multiplies matrices of float32 with MKL, which uses AVX-512 on processors of Intel only. oneDNN, a part of torch
for the layers of neural networks, uses it on those of AMD too, and takes less than half of the time there
(docs/decisions/016-products.md). Everything else, float64, GPUs and small matrices among it, is left to torch.mm.

Shapes: M = rows and K = columns of the product, R = the dimension that is summed over.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import cast

from ..lazy_torch import torch

_SMALLEST = 1 << 21  # multiplications; the calls of oneDNN take longer than those of MKL
_ROWS = 256  # of the left matrix at a time where a product is added: limits the work space


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left @ right, (M, K), of matrices (M, R) and (R, K) with the same dtype and device."""
    if not _by_onednn(left, right):
        return left @ right
    return _multiplied(_packed(left), _packed(right.T))


def add_product(
    total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, alpha: float = 1.0, beta: float = 1.0
) -> torch.Tensor:
    """Replace total (M, K) by beta total + alpha left @ right, and return it; 256 K elements of work space."""
    if not _by_onednn(left, right):
        return total.addmm_(left, right, alpha=alpha, beta=beta)
    weights = _packed(right.T)
    for start in range(0, left.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        part = total[rows] if beta == 1.0 else total[rows].mul_(beta)
        part.add_(_multiplied(_packed(left[rows]), weights), alpha=alpha)
    return total


def uses_onednn(matrix: torch.Tensor) -> bool:
    """Return whether oneDNN multiplies this matrix, if the product is large enough.

    `torch.backends.mkldnn.enabled = False` turns it off, as for torch itself.
    """
    return (
        matrix.dtype == torch.float32
        and matrix.device.type == "cpu"
        and not matrix.requires_grad  # the operator has no derivative
        and _is_faster()
        and bool(torch.backends.mkldnn.enabled)
    )


def _by_onednn(left: torch.Tensor, right: torch.Tensor) -> bool:
    size = left.shape[0] * left.shape[1] * right.shape[1]
    return size >= _SMALLEST and uses_onednn(left) and uses_onednn(right)


def _multiplied(left: torch.Tensor, right_t: torch.Tensor) -> torch.Tensor:
    """Return left @ right_t^T by oneDNN, of matrices (M, R) and (K, R) that `_packed` returned."""
    found = torch.ops.mkldnn._linear_pointwise(left, right_t, None, "none", [], "")
    return cast("torch.Tensor", found)


def _packed(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix without gaps between its rows or columns. For others oneDNN has a path that takes minutes."""
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


@lru_cache(maxsize=1)
def _is_faster() -> bool:
    """Return whether oneDNN is faster than MKL on this processor: one with AVX-512 that Intel did not make."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "AVX512" in torch.backends.cpu.get_cpu_capability()
        and "AuthenticAMD" in _vendor()
    )


def _vendor() -> str:
    """Return the maker of the processor as Linux names it; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = (line for line in text.splitlines() if line.startswith("vendor_id"))
    return next(lines, "").partition(":")[2].strip()
