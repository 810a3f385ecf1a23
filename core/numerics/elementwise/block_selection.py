"""Which entries of one expert's task vector are kept, found and applied block by block.

The same entries as those of sparsify.py, and the same factors: the bytes of a merge do not depend on which of the two
was used. A selection is given all blocks in one or more passes, and then returns the mask of one block after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import numpy as np
import numpy.typing as npt

from ..lazy_torch import torch
from .bit_masks import from_array, keep_only, magnitude_bits, mask_of
from .sparsify import repeat_argsort
from .thresholds import Threshold, ThresholdSearch

Bytes = npt.NDArray[np.uint8]


class BlockSelection(ABC):
    """A selection of entries. Masks are integers (bit_masks.py); None keeps every entry of the block.

    factor : on the kept entries
    """

    factor = 1.0

    @property
    def wants_pass(self) -> bool:
        """Whether another pass over the blocks is needed before masks can be asked for."""
        return False

    @property
    def wants_tensor(self) -> bool:
        """Whether the whole task vector is needed before masks can be asked for."""
        return False

    def see(self, block: torch.Tensor) -> None:
        """Take a block of a pass, flat."""
        raise AssertionError("this selection needs no pass")

    def end_pass(self) -> None:
        """Evaluate a pass."""
        raise AssertionError("this selection needs no pass")

    def see_tensor(self, task_vector: torch.Tensor) -> None:
        """Take the whole task vector."""
        raise AssertionError("this selection needs no tensor")

    def rewind(self) -> None:
        """Begin again with the mask of the first block."""
        return

    @abstractmethod
    def mask(self, block: torch.Tensor) -> torch.Tensor | None:
        """Return the mask of the next block."""

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        """Set the entries of the next block that are not kept to 0, in place, and multiply the others by `factor`."""
        mask = self.mask(block)
        kept = block if mask is None else keep_only(block, mask)
        return kept if self.factor == 1.0 else kept.mul_(self.factor)


@final
class KeepAll(BlockSelection):
    """Every entry."""

    def mask(self, block: torch.Tensor) -> torch.Tensor | None:
        return None


@final
class KeepNone(BlockSelection):
    """No entry."""

    def mask(self, block: torch.Tensor) -> torch.Tensor | None:
        return mask_of(torch.zeros(block.numel(), dtype=torch.uint8), block)


def _unpacked(bits: Bytes, start: int, count: int) -> Bytes:
    """Return `count` entries from `start`, a multiple of eight."""
    assert start % 8 == 0, start
    return np.unpackbits(bits[start // 8 : (start + count + 7) // 8], count=count)


class _Kept(BlockSelection):
    """Masks that are read from packed bits once they are there."""

    def __init__(self) -> None:
        self._bits: Bytes | None = None
        self._position = 0

    def rewind(self) -> None:
        self._position = 0

    def mask(self, block: torch.Tensor) -> torch.Tensor | None:
        start, count = self._position, block.numel()
        self._position += count
        if self._bits is None:
            return mask_of(from_array(self._found(block)), block)
        return mask_of(from_array(_unpacked(self._bits, start, count)), block)

    @abstractmethod
    def _found(self, block: torch.Tensor) -> Bytes | npt.NDArray[np.bool_]:
        """Return which entries of the next block are kept."""


@final
class KeepAtRandom(_Kept):
    """Each entry with probability `density`, as `sparsify.keep_at_random`.

    Parameters
    ----------
    start : returns a generator at the beginning of the expert's random numbers
    remember : keep the masks of the first round, one bit per entry, instead of drawing them again: 2 ns per entry
    """

    def __init__(self, density: float, start: Callable[[], torch.Generator], *, remember: bool) -> None:
        super().__init__()
        self._density = np.float32(density)  # as torch rounds it to compare
        self._start = start
        self._generator = start()
        self._drawn: list[Bytes] | None = [] if remember else None

    def rewind(self) -> None:
        super().rewind()
        if self._drawn is None:
            self._generator = self._start()
        elif self._bits is None and self._drawn:
            self._bits = np.concatenate(self._drawn)

    def _found(self, block: torch.Tensor) -> Bytes | npt.NDArray[np.bool_]:
        keep = np.less(torch.rand(block.numel(), generator=self._generator).numpy(), self._density)
        if self._drawn is not None:
            self._drawn.append(np.packbits(keep))  # blocks have a multiple of eight entries, except the last one
        return keep


@final
class KeepMagnitudes(_Kept):
    """The entries at positions [first, last) in the order of magnitudes, the largest first.

    Of entries that tie at a threshold the first ones in the tensor, or those that torch's argsort puts first where
    sparsify.py asks it.

    Parameters
    ----------
    descending : whether sparsify.py asks argsort for descending magnitudes; it decides between ties
    """

    def __init__(self, num_elements: int, element_bytes: int, first: int, last: int, *, descending: bool) -> None:
        super().__init__()
        self._num_elements = num_elements
        self._range = (first, last)
        self._descending = descending
        counts = (last,) if first == 0 else (last, first)
        self._searches = [ThresholdSearch(num_elements, element_bytes, count) for count in counts]
        self._thresholds: list[Threshold] = []
        self._wanted: list[int] = []

    @property
    def wants_pass(self) -> bool:
        return any(not search.is_done for search in self._searches)

    @property
    def wants_tensor(self) -> bool:
        few = any(search.result().ties_are_few(self._num_elements) for search in self._searches)
        return few and self._bits is None

    def see(self, block: torch.Tensor) -> None:
        for search in self._searches:
            if not search.is_done:
                search.add(block)

    def end_pass(self) -> None:
        for search in self._searches:
            if not search.is_done:
                search.end_pass()

    def see_tensor(self, task_vector: torch.Tensor) -> None:
        first, last = self._range
        if not self._descending:
            first, last = self._num_elements - last, self._num_elements - first
        keep = repeat_argsort(task_vector, first, last, descending=self._descending)
        self._bits = np.packbits(keep.numpy())

    def rewind(self) -> None:
        super().rewind()
        self._thresholds = [search.result() for search in self._searches]
        self._wanted = [threshold.count - threshold.num_above for threshold in self._thresholds]

    def _found(self, block: torch.Tensor) -> Bytes | npt.NDArray[np.bool_]:
        bits = magnitude_bits(block).numpy()
        keep = self._above(0, bits)
        return keep if len(self._thresholds) == 1 else keep & ~self._above(1, bits)

    def _above(self, index: int, bits: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Return which entries are among the largest: those above the threshold, and the first of those at it."""
        threshold, wanted = self._thresholds[index], self._wanted[index]
        if threshold.count - threshold.num_above >= threshold.num_equal:
            return bits >= threshold.bits
        keep = bits > threshold.bits
        if wanted > 0:
            tied = np.flatnonzero(bits == threshold.bits)[:wanted]
            keep[tied] = True
            self._wanted[index] = wanted - len(tied)
        return keep


def keep_largest(num_elements: int, element_bytes: int, density: float) -> BlockSelection:
    """Keep what `sparsify.keep_largest` keeps of a tensor with more than `sparsify.SMALL` entries."""
    if density >= 1:
        return KeepAll()
    if density <= 0:
        return KeepNone()
    count = max(1, int(density * num_elements))
    return KeepMagnitudes(num_elements, element_bytes, 0, count, descending=True)


def drop_outliers(num_elements: int, element_bytes: int, density: float, gamma: float) -> BlockSelection:
    """Keep what `sparsify.drop_outliers` keeps of a tensor with more than `sparsify.SMALL` entries."""
    if density >= 1:
        return KeepAll()
    num_kept = int(density * num_elements)
    if num_kept == 0:
        return KeepNone()
    smaller = max(0, num_elements - num_kept - int(gamma * num_elements))
    first = num_elements - smaller - num_kept
    return KeepMagnitudes(num_elements, element_bytes, first, first + num_kept, descending=False)
