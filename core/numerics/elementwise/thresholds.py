"""Find the magnitude of the count-th largest entry, over blocks: from a sample and one pass, or by radix selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from ..lazy_torch import torch
from .bit_masks import from_array, magnitude_bits
from .blocks import blocks

if TYPE_CHECKING:
    from .bracket import Bracket  # imports NumPy, which plans do not need

LARGEST_SORT = 1 << 24  # most elements of a tensor whose ties tie_order.py chooses; it needs 300 MiB then
LARGEST_SHARE = 1 / 16  # of the entries that are collected between the bounds of a sample (bracket.py)
_DIGIT_BITS = 16
_FEW_TIES = 10_000  # ties are few when at most one entry in 10 000 ties
_SMALLEST_SAMPLED = 1 << 16  # elements of a tensor that is sampled
_SAMPLE_STRIDE = 17
_LARGEST_SAMPLE = 1 << 18


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

    @property
    def splits_ties(self) -> bool:
        """Whether some, but not all, entries at the threshold are kept."""
        return 0 < self.count - self.num_above < self.num_equal

    def ties_are_few(self, num_elements: int) -> bool:
        """Return True where ties are split, and so few that they are chosen as mergekit does (tie_order.py)."""
        return self.splits_ties and num_elements <= LARGEST_SORT and self.num_equal * _FEW_TIES <= num_elements


@final
class ThresholdSearch:
    """Radix selection with digits of 16 bits, from blocks that are given in one pass per digit.

    The bit patterns of non-negative IEEE numbers, read as integers, have the order of the numbers. With a sample of the
    tensor one pass between bounds comes first (bracket.py), which nearly always is enough. The result is the same.

    Cost: one pass with a sample, 0.5 ns per entry on one core. Without, 2 in float32 and 4 in float64, 2 ns per entry
    each; 1 MiB.

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
        self._num_elements = num_elements
        self._histogram: torch.Tensor | None = None
        self._bracket: Bracket | None = None
        if not count:
            self._prefix, self._num_equal = (1 << (self._num_bits - 1)) - 1, 1

    @property
    def is_done(self) -> bool:
        """Whether no further pass is needed."""
        return self._shift < 0

    def sample(self, blocks: Sequence[torch.Tensor]) -> None:
        """Use blocks from places all over the tensor, on the CPU, to find the threshold in one pass; before the first.

        Parameters
        ----------
        blocks : `magnitude_bits` of the entries, at least one
        """
        if not self.is_done:
            from .bracket import Bracket

            self._bracket = Bracket(
                [bits.numpy() for bits in blocks],
                self._count / self._num_elements,
                int(LARGEST_SHARE * self._num_elements),
            )

    def add(self, bits: torch.Tensor) -> None:
        """Count the entries of a block in the current pass, given as `magnitude_bits`."""
        if self._bracket is not None:
            self._bracket.add(bits.numpy())
            return
        upper = bits >> self._shift
        if self._shift + _DIGIT_BITS < self._num_bits:
            upper = _with_prefix(upper, self._prefix)
        counted = torch.bincount(upper, minlength=1 << _DIGIT_BITS)
        self._histogram = counted if self._histogram is None else self._histogram.add_(counted)

    def end_pass(self) -> None:
        """Determine the next digit from what the pass has counted."""
        if self._bracket is not None:
            found, self._bracket = self._bracket.result(self._count), None
            if found is not None:
                self._prefix, self._num_above, self._num_equal = found
                self._shift = -1
            return
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
    if flat.device.type == "cpu" and flat.numel() > _SMALLEST_SAMPLED:
        stride = max(_SAMPLE_STRIDE, flat.numel() // _LARGEST_SAMPLE) | 1  # odd: all columns of a matrix are sampled
        search.sample([magnitude_bits(flat[::stride])])
    while not search.is_done:
        for span in blocks(flat):
            search.add(magnitude_bits(flat[span]))
        search.end_pass()
    return search.result()
