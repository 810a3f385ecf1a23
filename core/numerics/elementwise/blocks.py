"""Whole-tensor work in blocks: temporaries of constant size that stay in the processor's cache.

On a CPU an elementwise chain of ten operations over a large tensor is bound by memory traffic and allocates a tensor
for each; over blocks of a megabyte it does neither. Sums are taken in float64, block by block in a fixed order, so
they do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..lazy_torch import torch

_CPU_BLOCK = 1 << 18  # 1 MiB of float32: within the second-level cache of current processors
_ACCELERATOR_BLOCK = 1 << 26  # enough work per kernel launch; 256 MiB of float32


def block_elements(device: torch.device) -> int:
    """Elements in one block on that device."""
    return _CPU_BLOCK if device.type == "cpu" else _ACCELERATOR_BLOCK


def blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Slices that cover `tensor.reshape(-1)` in order."""
    size = block_elements(tensor.device)
    for start in range(0, tensor.numel(), size):
        yield slice(start, min(start + size, tensor.numel()))


def inner_product(left: torch.Tensor, right: torch.Tensor) -> float:
    """sum_j left_j right_j over all elements, in float64."""
    flat_left, flat_right = left.reshape(-1), right.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for span in blocks(flat_left):
        total += torch.dot(flat_left[span].double(), flat_right[span].double())
    return total.item()


def blockwise_norm(tensor: torch.Tensor) -> float:
    """Frobenius norm, squares summed in float64."""
    return inner_product(tensor, tensor) ** 0.5


def absolute_sum(tensor: torch.Tensor, keep: torch.Tensor | None = None) -> float:
    """sum_j |tensor_j|, over the elements where the flat boolean `keep` is true if it is given, in float64."""
    flat = tensor.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for span in blocks(flat):
        block = flat[span].abs() if keep is None else flat[span].abs() * keep[span]
        total += block.sum(dtype=torch.float64)
    return total.item()
