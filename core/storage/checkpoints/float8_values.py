"""float8 weights with their scale, as the numbers that both stand for."""

from __future__ import annotations

import torch

from ...errors import CheckpointError
from ...listing import TensorSource

_BLOCK = 128  # DeepSeek's; the planner refuses other sizes


def dequantize(
    stored: torch.Tensor, scale: torch.Tensor, source: TensorSource, rows: tuple[int, int] | None = None
) -> torch.Tensor:
    """The weights in float32: stored * scale.

    Cost: 4 bytes an element for the result, and as much again while a block scale is applied.

    Parameters
    ----------
    stored : Tensor, the float8 numbers of `source`, or its rows [start, stop)
    scale : Tensor
        One number, one for each row, or one for each block of 128 x 128, (ceil(M / 128), ceil(K / 128))

    Raises
    ------
    CheckpointError : the scale fits the weight in none of these ways
    """
    scale = scale.to(torch.float32)
    weight = stored.to(torch.float32)
    if scale.numel() == 1:
        return weight.mul_(scale.reshape(()))
    start, stop = rows or (0, source.shape[0])
    if scale.shape in {(source.shape[0],), (source.shape[0], 1)}:
        return weight.mul_(scale.reshape(-1)[start:stop].reshape(-1, *[1] * (weight.ndim - 1)))
    if len(source.shape) != 2 or tuple(scale.shape) != tuple(-(-size // _BLOCK) for size in source.shape):
        raise CheckpointError(
            f"{source.uri}: a float8 tensor of shape {source.shape} has a scale of shape {tuple(scale.shape)};"
            " expected one number, one for each row, or one for each block of 128 x 128"
        )
    row_blocks = torch.arange(start, stop) // _BLOCK
    column_blocks = torch.arange(source.shape[1]) // _BLOCK
    return weight.mul_(scale[row_blocks][:, column_blocks])
