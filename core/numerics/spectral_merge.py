"""From a spectrum and a method's parameters to the merged delta.

A method's `factors` carry its `scale`, like every other number that is cheap to change, so that the delta, its low-rank
form and whatever else is made of the factors agree. Nothing here or later multiplies by it again.
"""

from __future__ import annotations

from typing import Any

from .lazy_torch import torch
from .method import SpectralMethod
from .spectrum import Spectrum, apply_factors, low_rank_form


def merged_delta(method: SpectralMethod[Any, Any], spectrum: Spectrum, parameters: Any) -> tuple[torch.Tensor, int]:
    """The merged delta, (M, K), and the rank that the method kept.

    Cost: 2 R M K flops.
    """
    factors = method.factors(spectrum, parameters)
    return apply_factors(spectrum, factors), factors.rank


def merged_low_rank(
    method: SpectralMethod[Any, Any], spectrum: Spectrum, parameters: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same delta as factors (M, R') and (R', K), for an adapter; no M x K matrix is formed."""
    return low_rank_form(spectrum, method.factors(spectrum, parameters))
