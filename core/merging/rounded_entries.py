"""Clear the entries of a task vector that are nothing but the rounding of the expert's stored dtype."""

from __future__ import annotations

import torch

from ..numerics.elementwise.blocks import block_elements

# Quantizers work in float32, or round weight, scale and quotient to bfloat16, 2^-9 each; near a tie both are right.
_SCALED_SLACK = 2.0**-7


def clear_rounded_entries(
    delta: torch.Tensor, full: torch.Tensor, base: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None
) -> None:
    """Set `delta` to zero, in place, where the base rounded to the expert's dtype is the expert's value.

    Such an entry did not change as far as the stored expert tells. Its difference from a base of higher precision is
    the rounding of the base, which is the same for all experts and would be merged as if they agreed on it. See
    docs/decisions/120-rounded-experts.md.

    Cost: one pass; blocks of a few MB.

    Parameters
    ----------
    delta, full, base : Tensor, of one shape, `delta` contiguous
        full - base, the expert's values and the base's, in the arithmetic dtype
    dtype : of the stored expert
    scale : Tensor, float32, of the same shape, optional
        What multiplies the stored float8 numbers
    """
    if not delta.ndim:
        shape = (1,)
        delta, full, base = delta.view(shape), full.view(shape), base.view(shape)
    row_elements = delta.numel() // len(delta) if len(delta) else 1
    num_rows = max(1, block_elements(delta.device) // max(1, row_elements))
    for start in range(0, len(delta), num_rows):
        piece = slice(start, start + num_rows)
        equal = (
            _rounded(base[piece], dtype) == full[piece]
            if scale is None
            else _is_rounded_scaled(base[piece], full[piece], dtype, scale[piece])
        )
        delta[piece].masked_fill_(equal, 0.0)


def _rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.to(dtype).to(values.dtype)


def _is_rounded_scaled(base: torch.Tensor, full: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor) -> torch.Tensor:
    scale = scale.to(base.device)
    quotient = base.float() / scale
    one, other = (
        (quotient * factor).to(dtype).float() * scale for factor in (1.0 - _SCALED_SLACK, 1.0 + _SCALED_SLACK)
    )
    value = full.float()
    return (torch.minimum(one, other) <= value) & (value <= torch.maximum(one, other))
