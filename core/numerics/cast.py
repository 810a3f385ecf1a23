"""Cast the result of a merge to its output dtype with one rounding, and count values that are not finite."""

from __future__ import annotations

from .lazy_torch import torch

_BLOCK = 2**20  # elements at a time, so that the intermediate values need little memory


def round_once(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor in another floating point dtype, each entry rounded to nearest, ties to even.

    torch casts float64 to bfloat16, float16 and float8 through float32 and rounds twice: an entry just above the middle
    between two bfloat16 values is first rounded to the middle, and then to the even one. Here float32 is reached by
    rounding to odd, which keeps on which side of every middle an entry is.

    Cost: one pass; 20 bytes for each of 2^20 elements beyond the result.

    References
    ----------
    S. Boldo, G. Melquiond, Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd, IEEE
    Transactions on Computers 57 (2008)
    """
    if tensor.dtype != torch.float64 or not dtype.is_floating_point or dtype.itemsize >= 4:
        return tensor.to(dtype)
    result = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    source, target = tensor.reshape(-1), result.view(-1)
    for start in range(0, source.numel(), _BLOCK):
        span = slice(start, start + _BLOCK)
        target[span] = _round_to_odd(source[span]).to(dtype)
    return result


def count_nonfinite(tensor: torch.Tensor) -> int:
    """Return the number of NaN and Inf in a floating point tensor; needs work space only if there may be one."""
    # A sum is Inf or NaN if any term is. Only then the terms are checked one by one.
    dtype = torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype
    if bool(torch.isfinite(tensor.sum(dtype=dtype))):
        return 0
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def _round_to_odd(values: torch.Tensor) -> torch.Tensor:
    """Return float64 values in float32: of the two neighbors of an inexact value, the one with an odd last bit."""
    rounded = values.float()
    back = rounded.double()
    bits = rounded.view(torch.int32)
    step = torch.where(back.abs() > values.abs(), -1, 1)  # the magnitude of a float grows with its bits
    is_even = (bits & 1) == 0
    changes = is_even & (back != values) & ~values.isnan() & ~values.isinf()
    bits += torch.where(changes, step, 0).to(torch.int32)
    return rounded
