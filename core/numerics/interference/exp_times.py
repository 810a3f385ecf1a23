"""Cross-layer alignment (SWUDI+): filter times per layer that make t lambda_max equal, or nearly so, in all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..filters import EIGENVALUE_FLOOR


def align_exp_times(exp_time: float, largest_values: Mapping[str, float], alignment_rho: float) -> dict[str, float]:
    """Return t_layer = t (geometric mean of lambda_max over layers / lambda_max,layer)^rho of each layer.

    Parameters
    ----------
    exp_time : float
        t of the recipe.
    largest_values : mapping of layer name to lambda_max of its interference operator
        The layers that the same method merges. Values below 1e-8 are raised to it, as in the published code. A layer
        whose experts are all 0 (value 0) is not part of the mean and gets t.
    alignment_rho : float
        0 keeps t, 1 makes t lambda_max equal.

    Returns
    -------
    dict of layer name to its filter time

    References
    ----------
    "alignment_rho" of the published code of SWUDI, arXiv:2606.07289
    """
    floored = {name: max(value, EIGENVALUE_FLOOR) for name, value in largest_values.items() if value > 0}
    if not floored:
        return dict.fromkeys(largest_values, exp_time)
    reference = math.exp(math.fsum(math.log(value) for value in floored.values()) / len(floored))
    return {
        name: exp_time * (reference / floored[name]) ** alignment_rho if name in floored else exp_time
        for name in largest_values
    }
