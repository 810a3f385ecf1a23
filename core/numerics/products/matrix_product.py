"""Matrix products in float32 on processors, by oneDNN where MKL does not use the processor's widest instructions.

torch multiplies matrices of float32 with MKL, which uses AVX-512 on processors of Intel only. oneDNN, a part of torch
for the layers of neural networks, uses it on those of AMD too, and takes less than half of the time there
(docs/decisions/016-products.md). Everything else, float64, GPUs and small matrices included, is left to torch.mm.

Shapes: M = rows and K = columns of the product, R = the dimension that is summed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

from ..lazy_torch import torch

_SMALLEST = 1 << 22  # multiplications; below that, a call of oneDNN takes longer than one of MKL

# oneDNN generates code for every combination of sizes, and keeps it: 0.7 MB each. So a product is divided into parts of
# few sizes: these numbers of rows, of terms that are summed, and of columns. torch.mm computes what remains.
_ROWS = (256, 128)
_SUMMED = (1024, 512, 256, 128)
_COLUMNS = (2048, 1024, 512, 256, 128)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left @ right, (M, K), of matrices (M, R) and (R, K) with the same dtype and device."""
    if not _by_onednn(left, right):
        return left @ right
    return _add(left.new_zeros((left.shape[0], right.shape[1])), left, right, 1.0)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """Add alpha left @ right to total (M, K) in place, and return it; needs work space for a part of the product."""
    if not _by_onednn(left, right):
        return total.addmm_(left, right, alpha=alpha)
    return _add(total, left, right, alpha)


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
    sizes = left.shape[0], left.shape[1], right.shape[1]
    is_large = min(sizes) >= _ROWS[-1] and math.prod(sizes) >= _SMALLEST
    return is_large and uses_onednn(left) and uses_onednn(right)


def _add(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, alpha: float) -> torch.Tensor:
    """Add alpha left @ right to total (M, K), part by part."""
    all_rows, all_summed, all_columns = (
        _parts(length, sizes)
        for length, sizes in ((left.shape[0], _ROWS), (left.shape[1], _SUMMED), (right.shape[1], _COLUMNS))
    )
    for summed in all_summed:
        for columns in all_columns:
            weights = _packed(right[summed, columns])
            for rows in all_rows:
                part = _multiplied(left[rows, summed].contiguous(), weights)
                total[rows, columns].add_(part, alpha=alpha)
    num_rows, num_summed, num_columns = (
        parts[-1].stop if parts else 0 for parts in (all_rows, all_summed, all_columns)
    )
    if num_columns < total.shape[1]:
        total[:num_rows, num_columns:].addmm_(
            left[:num_rows, :num_summed], right[:num_summed, num_columns:], alpha=alpha
        )
    if num_summed < left.shape[1]:
        total[:num_rows].addmm_(left[:num_rows, num_summed:], right[num_summed:], alpha=alpha)
    if num_rows < total.shape[0]:
        total[num_rows:].addmm_(left[num_rows:], right, alpha=alpha)
    return total


def _parts(length: int, sizes: Sequence[int]) -> list[slice]:
    """Return slices of these sizes, descending, from the start of a dimension; less than the last is left over."""
    parts: list[slice] = []
    start = 0
    for size in sizes:
        while length - start >= size:
            parts.append(slice(start, start + size))
            start += size
    return parts


def _multiplied(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left @ right by oneDNN, of a contiguous matrix and one that `_packed` returned."""
    found = torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
    return cast("torch.Tensor", found)


def _packed(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix without gaps between its rows or columns. For others oneDNN has a path that takes minutes."""
    return matrix.contiguous() if matrix.stride(1) == 1 else matrix.T.contiguous().T


@lru_cache(maxsize=1)
def _is_faster() -> bool:
    """Return whether oneDNN is faster than MKL on this processor: one of AMD with AVX-512."""
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
