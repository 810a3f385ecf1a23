"""The corner of the L-curve: the candidate after which less interference costs much more distance from the anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Candidates with a smaller residual or distance count as this: an exact solution has no logarithm.
_SMALLEST = 1e-12


def corner_scores(residuals: Sequence[float], distances: Sequence[float]) -> list[float | None]:
    """Return for each candidate how far it lies below the chord of the L-curve; the corner has the largest value.

    Both axes are logarithms, scaled to 0 .. 1 over the candidates. The chord joins the candidate with the largest
    residual to that with the smallest. Candidates of a grid of several parameters are a cloud instead of a curve; its
    lower left border is then searched in the same way.

    Parameters
    ----------
    residuals : E(theta) / E(0) of each candidate
    distances : of the merged delta from the anchor

    Returns
    -------
    list of distances; all None for fewer than three candidates, or where all have the same residual or distance
    """
    across = _scaled([math.log(max(value, _SMALLEST)) for value in residuals])
    up = _scaled([math.log(max(value, _SMALLEST)) for value in distances])
    if len(across) < 3 or not up:
        return [None] * len(residuals)
    # The chord of a falling curve from (0, 1) to (1, 0) is x + y = 1.
    return [(1.0 - x - y) / math.sqrt(2.0) for x, y in zip(across, up, strict=True)]


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(value - low) / (high - low) for value in values] if high > low else []
