"""Find the count-th largest magnitude in one pass, between two bounds that a sample gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[Any]  # magnitudes as integers, int32 or int64

_DEVIATIONS = 5.0  # standard errors of a sample's quantile between it and a bound
_FREQUENT = 1 / 256  # of a sample: the share of a magnitude that is counted instead of collected
_MOST_FREQUENT = 8  # magnitudes that are counted


@final
class Bracket:
    """Counts what is above the upper bound, and collects what is between the bounds.

    Differences of 16-bit numbers have magnitudes that a tenth of the entries share. Those between the bounds are
    counted one by one.

    Cost: 0.4 ns per entry on one core, 0.1 ns more for each frequent magnitude; some percent of the entries in memory.

    Parameters
    ----------
    sample : blocks of the magnitudes of a tensor, from places all over it
    share : of the largest entries that are sought
    limit : most entries that are collected
    """

    def __init__(self, sample: Sequence[Bits], share: float, limit: int) -> None:
        self._limit = limit
        self._lower, self._upper, frequent = _bounds(sample, share)
        self._numbers = dict.fromkeys(frequent, 0)  # of entries of these magnitudes, the largest first
        self._num_above = self._num_collected = 0
        self._collected: list[Bits] = []

    def add(self, bits: Bits) -> None:
        """Take a block of the pass."""
        above = bits > self._upper
        self._num_above += int(np.count_nonzero(above))
        inside = np.not_equal(bits >= self._lower, above, out=above)
        for magnitude in self._numbers:
            equal = bits == magnitude
            self._numbers[magnitude] += int(np.count_nonzero(equal))
            np.not_equal(inside, equal, out=inside)
        self._num_collected += int(np.count_nonzero(inside))
        if self._num_collected <= self._limit:
            self._collected.append(bits[np.flatnonzero(inside)])

    def result(self, count: int) -> tuple[int, int, int] | None:
        """Return the count-th largest magnitude, how many are above it, and how many are equal to it.

        None where it is not between the bounds, or where too many are: the sample was not typical.
        """
        wanted = count - self._num_above
        inside = self._num_collected + sum(self._numbers.values())
        if self._num_collected > self._limit or not 0 < wanted <= inside:
            return None
        others = np.sort(np.concatenate(self._collected))
        above = 0  # entries of frequent magnitudes above the one that is sought
        for magnitude, number in self._numbers.items():
            larger = above + len(others) - int(np.searchsorted(others, magnitude, "right"))
            if wanted <= larger:
                break
            if wanted <= larger + number:
                return magnitude, self._num_above + larger, number
            above += number
        bits = int(others[len(others) - (wanted - above)])
        first, last = (int(np.searchsorted(others, bits, side)) for side in ("left", "right"))
        return bits, self._num_above + above + len(others) - last, last - first


def _bounds(sample: Sequence[Bits], share: float) -> tuple[int, int, list[int]]:
    """Return bounds between which the magnitude is that the fraction `share` of a tensor reaches, most probably.

    And the frequent magnitudes between them, the largest first.
    """
    ordered = np.sort(np.concatenate(sample))
    size = len(ordered)
    middle = min(int(share * size), size - 1)
    quantile = ordered[size - 1 - middle]
    shares = [np.count_nonzero(block >= quantile) / len(block) for block in sample if len(block)]
    # Rows differ, so that blocks may differ by more than draws of single entries.
    error = max(float(np.std(shares)) / max(1, len(shares) - 1) ** 0.5, (share * (1 - share) / size) ** 0.5)
    margin = int(_DEVIATIONS * error * size) + 16
    first, last = size - 1 - middle - margin, size - 1 - middle + margin
    lower = int(ordered[first]) if first >= 0 else 0
    upper = int(ordered[last]) if last < size else int(np.iinfo(ordered.dtype).max)
    found, numbers = np.unique(ordered[max(first, 0) : last + 1], return_counts=True)
    frequent = found[np.argsort(-numbers)[:_MOST_FREQUENT]]
    spread = np.searchsorted(ordered, frequent, "right") - np.searchsorted(ordered, frequent, "left")
    return lower, upper, sorted((int(one) for one in frequent[spread > _FREQUENT * size]), reverse=True)
