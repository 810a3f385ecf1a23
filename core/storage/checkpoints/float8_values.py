"""Dequantize float8 weights: multiply the stored numbers by their scale."""

from __future__ import annotations

import torch

from ...errors import CheckpointError
from ...formats.dtypes import SCALE_BLOCK_SIZE
from ...listing import TensorSource


def dequantize(
    stored: torch.Tensor, scale: torch.Tensor, source: TensorSource, rows: tuple[int, int] | None = None
) -> torch.Tensor:
    """Return stored * scale in float32.

    Cost: 4 bytes per element for the result, and as much again while a block scale is applied.

    Parameters
    ----------
    stored : Tensor, float8, of the shape of `source`, or its rows [start, stop)
    scale : Tensor
        One number; one per row, (M,) or (M, 1); or one per block of 128 x 128, (ceil(M / 128), ceil(K / 128)), for each
        expert of a stack
    source : TensorSource
        The complete tensor
    rows : (start, stop), optional
        The rows that `stored` holds

    Raises
    ------
    CheckpointError : the scale has none of these shapes
    """
    scale = scale.to(torch.float32)
    weight = stored.to(torch.float32)
    if scale.numel() == 1:
        return weight.mul_(scale.reshape(()))
    start, stop = rows or (0, source.shape[0])
    if scale.shape in {(source.shape[0],), (source.shape[0], 1)}:
        return weight.mul_(scale.reshape(-1)[start:stop].reshape(-1, *[1] * (weight.ndim - 1)))
    num_blocks = tuple(-(-size // SCALE_BLOCK_SIZE) for size in source.shape[-2:])
    if len(source.shape) not in (2, 3) or tuple(scale.shape) != (*source.shape[:-2], *num_blocks):
        raise CheckpointError(
            f"{source.uri}: a float8 tensor of shape {source.shape} has a scale of shape {tuple(scale.shape)}; expected"
            f" one number, one per row, or one per block of {SCALE_BLOCK_SIZE} x {SCALE_BLOCK_SIZE}"
        )
    column_blocks = torch.arange(source.shape[-1]) // SCALE_BLOCK_SIZE
    if len(source.shape) == 3:  # a stack of experts; rows are experts
        row_blocks = torch.arange(source.shape[1]) // SCALE_BLOCK_SIZE
        for index in range(start, stop):
            weight[index - start].mul_(scale[index][row_blocks][:, column_blocks])
        return weight
    row_blocks = torch.arange(start, stop) // SCALE_BLOCK_SIZE
    return weight.mul_(scale[row_blocks][:, column_blocks])
