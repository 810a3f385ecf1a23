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
from .products.matrix_product import add_product, product
from .spectrum import Spectrum

_ROWS = 2048  # outputs at a time: limits the work space


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

    Cost: 2 R M K flops; M K + 2048 R elements beyond the spectrum.

    Returns
    -------
    Tensor, (M, K), the spectrum's dtype and device
    """
    kept = _kept_directions(spectrum, factors)
    rows, columns = spectrum.shape
    right = spectrum.right[kept]
    step = max(1, rows) if right.is_cuda else _ROWS
    if factors.anchor is None and rows <= step:
        return product(_combined_left(spectrum, factors, kept, slice(None)).T, right)
    delta = right.new_zeros((rows, columns)) if factors.anchor is None else factors.anchor()
    for start in range(0, rows, step):
        outputs = slice(start, start + step)
        add_product(delta[outputs], _combined_left(spectrum, factors, kept, outputs).T, right)
    return delta


def low_rank_form(spectrum: Spectrum, factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the merged delta without its anchor as two factors (M, R') and (R', K), no direction with weights 0."""
    kept = _kept_directions(spectrum, factors)
    right = spectrum.right[kept]
    # A part of a larger matrix would keep all of it in memory.
    right = right.clone() if right.untyped_storage().nbytes() > right.nbytes else right
    return _combined_left(spectrum, factors, kept, slice(None)).T, right


def _kept_directions(spectrum: Spectrum, factors: Factors) -> slice | torch.Tensor:
    """Return the directions with a weight that is not 0; a slice where these are the first ones, as nearly always."""
    keep = torch.zeros(spectrum.num_directions, dtype=torch.bool, device=spectrum.values.device)
    for weight in factors.weights.values():
        keep |= weight != 0
    index = keep.nonzero().squeeze(1)
    count = len(index)
    return slice(count) if count == 0 or int(index[-1]) == count - 1 else index


def _combined_left(spectrum: Spectrum, factors: Factors, kept: slice | torch.Tensor, outputs: slice) -> torch.Tensor:
    """Return sum_b g_bk left_bk of the kept directions, (R', M'), for some of the M outputs."""
    like = spectrum.right
    count = len(spectrum.values[kept])
    left = torch.zeros((count, len(range(spectrum.shape[0])[outputs])), dtype=like.dtype, device=like.device)
    for name, weight in factors.weights.items():
        left.addcmul_(spectrum.left[name][:, outputs][kept], weight[kept].to(left.dtype).unsqueeze(1))
    return left
