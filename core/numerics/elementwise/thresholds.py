"""Find the magnitude of the count-th largest entry, by radix selection over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from ..lazy_torch import torch
from .bit_masks import from_array, magnitude_bits
from .blocks import blocks

LARGEST_SORT = 1 << 24  # most elements that are sorted; argsort's work space is then 400 MiB
_DIGIT_BITS = 16
_FEW_TIES = 10_000  # ties are few when at most one entry in 10 000 ties


@dataclass(frozen=True, slots=True)
class Threshold:
    """The magnitude of the count-th largest entry.

    bits : its bit pattern
    num_above : number of entries of larger magnitude
    num_equal : number of entries of this magnitude
    count : number of entries to keep, num_above < count <= num_above + num_equal (0: keep none)
    """

    bits: int
    num_above: int
    num_equal: int
    count: int

    def ties_are_few(self, num_elements: int) -> bool:
        """Return True when some, but not all, entries at the threshold are kept, and a sort to choose them is cheap."""
        splits = 0 < self.count - self.num_above < self.num_equal
        return splits and num_elements <= LARGEST_SORT and self.num_equal * _FEW_TIES <= num_elements


@final
class ThresholdSearch:
    """Radix selection with digits of 16 bits, from blocks that are given in one pass per digit.

    The bit patterns of non-negative IEEE numbers, read as integers, have the order of the numbers.

    Cost: `num_passes` passes over the entries (2 in float32, 4 in float64), 1 ns each on one core; 1 MiB.

    Parameters
    ----------
    num_elements, element_bytes : of the tensor
    count : of the entries to keep, 0 to `num_elements`
    """

    def __init__(self, num_elements: int, element_bytes: int, count: int) -> None:
        self._num_bits = 8 * element_bytes
        self._shift = self._num_bits - _DIGIT_BITS if count else -1
        self._count = count
        self._prefix, self._num_above, self._num_equal = 0, 0, num_elements
        self._histogram: torch.Tensor | None = None
        if not count:
            self._prefix, self._num_equal = (1 << (self._num_bits - 1)) - 1, 1

    @property
    def is_done(self) -> bool:
        """Whether no further pass is needed."""
        return self._shift < 0

    def add(self, block: torch.Tensor) -> None:
        """Count the entries of a block, float32 or float64, in the current pass."""
        bits = magnitude_bits(block)
        upper = bits >> self._shift
        if self._shift + _DIGIT_BITS < self._num_bits:
            upper = _with_prefix(upper, self._prefix)
        counted = torch.bincount(upper, minlength=1 << _DIGIT_BITS)
        self._histogram = counted if self._histogram is None else self._histogram.add_(counted)

    def end_pass(self) -> None:
        """Determine the next digit from what the pass has counted."""
        histogram = self._histogram
        assert histogram is not None, "a search has entries"
        from_top = histogram.flip(0).cumsum(0)
        steps = int((from_top < self._count - self._num_above).sum())  # number of larger digits
        digit = (1 << _DIGIT_BITS) - 1 - steps
        self._num_above += int(from_top[steps - 1]) if steps else 0
        self._num_equal = int(histogram[digit])
        self._prefix = (self._prefix << _DIGIT_BITS) | digit
        self._histogram = None
        self._shift -= _DIGIT_BITS

    def result(self) -> Threshold:
        """Return the threshold, after the last pass."""
        assert self.is_done
        return Threshold(self._prefix, self._num_above, self._num_equal, self._count)


def _with_prefix(upper: torch.Tensor, prefix: int) -> torch.Tensor:
    """Return the last digits of those numbers whose preceding digits are `prefix`."""
    first = prefix << _DIGIT_BITS
    if upper.device.type != "cpu":
        return upper[(upper >> _DIGIT_BITS) == prefix] - first
    digits = upper.numpy() - first  # NumPy compares and selects 5 times faster
    return from_array(digits[(digits >= 0) & (digits < 1 << _DIGIT_BITS)])


def find_threshold(values: torch.Tensor, count: int) -> Threshold:
    """Return the threshold of the `count` largest magnitudes of a tensor."""
    flat = values.reshape(-1)
    search = ThresholdSearch(flat.numel(), flat.element_size(), count)
    while not search.is_done:
        for span in blocks(flat):
            search.add(flat[span])
        search.end_pass()
    return search.result()
