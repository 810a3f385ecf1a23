"""Apply a filter to a spectrum: its factors on the directions give the merged delta, as a matrix or as two factors.

    merged delta = anchor + sum_k (sum_b g_bk left_bk) right_k^T

g_bk is the factor of direction k in block b. A method's `factors` include its `scale`; nothing multiplies by it again.
The anchor is 0, except where a spectrum has only a part of its directions (interference/top_directions.py).

Shapes: M = out features (D1), K = in features (D2), R = number of directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .lazy_torch import torch
from .spectrum import Spectrum


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of a filter on the directions of a spectrum.

    weights : mapping of block name to Tensor (R,), g_bk; 0 for blocks that are not in it
    rank : int, number of directions that the method keeps; written to the manifest
    anchor : returns a new Tensor (M, K), which is added to the sum; None for 0
    """

    weights: Mapping[str, torch.Tensor]
    rank: int
    anchor: Callable[[], torch.Tensor] | None = None


def apply_factors(spectrum: Spectrum, factors: Factors) -> torch.Tensor:
    """Return the merged delta, anchor + sum_k (sum_b g_bk left_bk) right_k^T.

    Cost: 2 R M K flops; R M + M K elements beyond the spectrum.

    Returns
    -------
    Tensor, (M, K), the spectrum's dtype and device
    """
    left, right = low_rank_form(spectrum, factors)
    return left @ right if factors.anchor is None else factors.anchor().addmm_(left, right)


def low_rank_form(spectrum: Spectrum, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the merged delta without its anchor as two factors (M, R') and (R', K), no direction with weights 0."""
    keep = torch.zeros(spectrum.num_directions, dtype=torch.bool, device=spectrum.values.device)
    for weight in factors.weights.values():
        keep |= weight != 0
    index = keep.nonzero().squeeze(1)
    count = len(index)
    # A filter nearly always keeps the first directions, whose vectors are used where they are.
    kept = slice(count) if count and int(index[-1]) == count - 1 else index
    left = torch.zeros((count, spectrum.shape[0]), dtype=spectrum.right.dtype, device=spectrum.right.device)
    for name, weight in factors.weights.items():
        left.addcmul_(spectrum.left[name][kept], weight[kept].to(left.dtype).unsqueeze(1))
    right = spectrum.right[kept]
    # A part of a larger matrix would keep all of it in memory.
    return left.T, right.clone() if right.untyped_storage().nbytes() > right.nbytes else right
