"""Elementwise operations and sums over a large tensor, block by block.

On a CPU ten elementwise operations over a large tensor are limited by memory traffic and allocate ten tensors. Blocks
of a megabyte stay in the cache. Sums are in float64 and in a fixed order of blocks, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..lazy_torch import torch

_CPU_BLOCK = 1 << 18  # 1 MiB of float32: fits the second-level cache of current processors
_ACCELERATOR_BLOCK = 1 << 26  # 256 MiB of float32: enough work for each kernel launch


def block_elements(device: torch.device) -> int:
    """Return the number of elements of a block on that device."""
    return _CPU_BLOCK if device.type == "cpu" else _ACCELERATOR_BLOCK


def blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Iterate over slices that cover `tensor.reshape(-1)` in order."""
    size = block_elements(tensor.device)
    for start in range(0, tensor.numel(), size):
        yield slice(start, min(start + size, tensor.numel()))


def inner_product(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return sum_j left_j right_j over all elements, summed in float64."""
    flat_left, flat_right = left.reshape(-1), right.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for span in blocks(flat_left):
        total += torch.dot(flat_left[span].double(), flat_right[span].double())
    return total.item()


def blockwise_norm(tensor: torch.Tensor) -> float:
    """Return the Frobenius norm, with squares summed in float64."""
    return inner_product(tensor, tensor) ** 0.5


def absolute_sum(tensor: torch.Tensor, keep: torch.Tensor | None = None) -> float:
    """Return sum_j |tensor_j| in float64, over the elements where the flat boolean `keep` is true if it is given."""
    flat = tensor.reshape(-1)
    total = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for span in blocks(flat):
        block = flat[span].abs() if keep is None else flat[span].abs() * keep[span]
        total += block.sum(dtype=torch.float64)
    return total.item()
