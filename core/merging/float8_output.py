"""Store a merged weight as float8 E4M3 with scales: one for each block of 128 x 128, or one for each row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import NonFiniteError
from ..formats.dtypes import SCALE_BLOCK_SIZE
from ..planning.plan import Float8Form

_LARGEST = 448.0  # of E4M3
_DTYPE = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """A weight as it is stored; the weight that is read is `stored * scale`.

    stored : Tensor, float8 E4M3, (M, K) or (E, M, K)
    scale : Tensor, float32; block: (ceil(M / 128), ceil(K / 128)), or one of these per expert; channel: (M, 1)
    error : Frobenius norm of the difference from the merged weight, relative to that weight; 0 if it is zero
    """

    stored: torch.Tensor
    scale: torch.Tensor
    error: float


def quantize(weight: torch.Tensor, form: Float8Form, name: str) -> Float8Weight:
    """Round a weight to float8. Every scale maps the largest absolute value of its block or row to 448.

    Cost: one pass; 1 byte per element, and 16 bytes per element of 128 rows.

    Parameters
    ----------
    weight : Tensor, (M, K) or (E, M, K), float32 or float64
    name : of the tensor, for the error

    Raises
    ------
    NonFiniteError : the weight has NaN or Inf, or a value that float32 cannot hold
    """
    matrices = weight if weight.ndim == 3 else weight.unsqueeze(0)
    stored = torch.empty(matrices.shape, dtype=_DTYPE, device=weight.device)
    scales: list[torch.Tensor] = []
    lost = total = 0.0
    for index, start in _strips(matrices):
        strip = matrices[index, start : start + SCALE_BLOCK_SIZE].float()
        scale = _scale_of(strip, form)
        spread = scale if form == "channel" else scale.repeat_interleave(SCALE_BLOCK_SIZE, 1)[:, : strip.shape[1]]
        rounded = (strip / spread).to(_DTYPE)
        stored[index, start : start + SCALE_BLOCK_SIZE] = rounded
        scales.append(scale)
        exact = matrices[index, start : start + SCALE_BLOCK_SIZE].double()
        lost += float((rounded.float() * spread - exact).square().sum())
        total += float(exact.square().sum())
    if not math.isfinite(total) or not all(bool(torch.isfinite(scale).all()) for scale in scales):
        raise NonFiniteError(
            f"merged tensor {name!r} has values that float8 with float32 scales cannot hold; lower the scale"
        )
    joined = torch.cat(scales)
    if weight.ndim == 3:
        joined = joined.reshape(len(matrices), -1, joined.shape[1])
    return Float8Weight(stored.reshape(weight.shape), joined, math.sqrt(lost / total) if total > 0 else 0.0)


def spread_scale(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return what multiplies each element of a weight of this shape."""
    if scale.shape[-1] == 1 and scale.shape[-2] == shape[-2]:
        return scale.expand(shape)
    rows = scale.repeat_interleave(SCALE_BLOCK_SIZE, -2)[..., : shape[-2], :]
    return rows.repeat_interleave(SCALE_BLOCK_SIZE, -1)[..., : shape[-1]]


def _strips(matrices: torch.Tensor) -> Iterator[tuple[int, int]]:
    for index in range(len(matrices)):
        for start in range(0, matrices.shape[1], SCALE_BLOCK_SIZE):
            yield index, start


def _scale_of(strip: torch.Tensor, form: Float8Form) -> torch.Tensor:
    """Return the scales of up to 128 rows: (rows, 1), or (1, number of blocks). A scale of zeros only is 1."""
    largest = strip.abs()
    if form == "channel":
        largest = largest.amax(dim=1, keepdim=True)
    else:
        width = -(-strip.shape[1] // SCALE_BLOCK_SIZE) * SCALE_BLOCK_SIZE
        padded = torch.nn.functional.pad(largest, (0, width - strip.shape[1]))
        largest = padded.reshape(strip.shape[0], -1, SCALE_BLOCK_SIZE).amax(dim=(0, 2)).unsqueeze(0)
    scale = largest / _LARGEST
    return torch.where(scale > 0, scale, torch.ones_like(scale))
