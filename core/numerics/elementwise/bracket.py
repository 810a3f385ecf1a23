"""Find the count-th largest magnitude in one pass, between two bounds that a sample gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[Any]  # magnitudes as integers, int32 or int64

_DEVIATIONS = 5.0  # standard errors of a sample's quantile between it and a bound
_MANY = 8  # a block of which more than one entry in so many is between the bounds has many at a bound


@final
class Bracket:
    """Counts what is above two bounds, and collects what is between them.

    Cost: 0.5 ns per entry on one core; some percent of the entries in memory.

    Parameters
    ----------
    sample : blocks of the magnitudes of a tensor, from places all over it
    share : of the largest entries that are sought
    limit : most entries that are collected
    """

    def __init__(self, sample: Sequence[Bits], share: float, limit: int) -> None:
        self._limit = limit
        self._lower, self._upper = _bounds(sample, share)
        self._num_above = self._num_at_upper = self._num_at_lower = 0
        self._between: list[Bits] = []
        self._num_between = 0

    def add(self, bits: Bits) -> None:
        """Take a block of the pass."""
        above = bits > self._upper
        self._num_above += int(np.count_nonzero(above))
        inside = np.not_equal(bits >= self._lower, above, out=above)
        found = bits[np.flatnonzero(inside)]
        if len(found) * _MANY > len(bits):
            self._num_at_upper += int(np.count_nonzero(found == self._upper))
            if self._lower < self._upper:
                self._num_at_lower += int(np.count_nonzero(found == self._lower))
            found = found[(found > self._lower) & (found < self._upper)]
        self._num_between += len(found)
        if self._num_between <= self._limit:
            self._between.append(found)

    def result(self, count: int) -> tuple[int, int, int] | None:
        """Return the count-th largest magnitude, how many are above it, and how many are equal to it.

        None where it is not between the bounds, or where too many are: the sample was not typical.
        """
        wanted = count - self._num_above
        if self._num_between > self._limit or wanted <= 0:
            return None
        between = np.concatenate(self._between)
        if wanted > self._num_at_upper + len(between) + self._num_at_lower:
            return None
        bounds = {self._lower: self._num_at_lower}
        bounds[self._upper] = self._num_at_upper  # of both, where they are one number
        bits = _nth_largest(between, bounds, wanted)
        num_above = self._num_above + int(np.count_nonzero(between > bits))
        num_above += sum(number for bound, number in bounds.items() if bound > bits)
        return bits, num_above, int(np.count_nonzero(between == bits)) + bounds.get(bits, 0)


def _nth_largest(between: Bits, bounds: dict[int, int], wanted: int) -> int:
    """Return the wanted-th largest of what is between the bounds and of the numbers counted at them."""
    upper, lower = max(bounds), min(bounds)
    if wanted <= bounds[upper]:
        return upper
    wanted -= bounds[upper]
    if wanted > len(between):
        return lower
    return int(np.partition(between, len(between) - wanted)[len(between) - wanted])


def _bounds(sample: Sequence[Bits], share: float) -> tuple[int, int]:
    """Return bounds between which the magnitude is that the fraction `share` of a tensor reaches, most probably."""
    joined = np.concatenate(sample)
    size = len(joined)
    middle = min(max(int(share * size), 0), size - 1)
    quantile = np.partition(joined, size - 1 - middle)[size - 1 - middle]
    shares = [np.count_nonzero(block >= quantile) / len(block) for block in sample if len(block)]
    # Rows differ, so that blocks may differ by more than draws of single entries.
    error = max(float(np.std(shares)) / max(1, len(shares) - 1) ** 0.5, (share * (1 - share) / size) ** 0.5)
    margin = int(_DEVIATIONS * error * size) + 16
    first, last = size - 1 - middle - margin, size - 1 - middle + margin
    ordered = np.partition(joined, [max(first, 0), min(last, size - 1)])
    lower = int(ordered[first]) if first >= 0 else 0
    upper = int(ordered[last]) if last < size else int(np.iinfo(joined.dtype).max)
    return lower, upper
