"""Which entries of one expert's task vector are kept, found and applied block by block.

The same entries as those of sparsify.py, and the same factors: the bytes of a merge do not depend on which of the two
was used. A selection is given all blocks in one or more passes, and then selects from one block after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from ..lazy_torch import torch
from .bit_masks import from_array, keep_only, magnitude_bits, mask_of
from .largest_part import LargestPart
from .rank_masks import RankMasks
from .thresholds import ThresholdSearch
from .tie_order import Positions, kept_ties

Bytes = npt.NDArray[np.uint8]


class BlockSelection(ABC):
    """A selection of entries.

    factor : on the kept entries
    keeps_all : whether every entry is kept
    """

    factor = 1.0
    keeps_all = False

    @property
    def wants_pass(self) -> bool:
        """Whether another pass over the blocks is needed before entries can be selected."""
        return False

    @property
    def wants_tensor(self) -> bool:
        """Whether the whole task vector is needed before entries can be selected."""
        return False

    def see_sample(self, blocks: Sequence[torch.Tensor]) -> None:
        """Take blocks from places all over the tensor, before the first pass, where `wants_pass` is true."""
        raise AssertionError("this selection needs no pass")

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
        """Begin again with the first block."""
        return

    @abstractmethod
    def select(self, block: torch.Tensor) -> torch.Tensor:
        """Return the next block with 0 for entries that are not kept. The block may be overwritten."""

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        """Return the next block with 0 for entries that are not kept, and the others multiplied by `factor`.

        The block may be overwritten.
        """
        kept = self.select(block)
        return kept if self.factor == 1.0 else kept.mul_(self.factor)


@final
class KeepAll(BlockSelection):
    """Every entry."""

    keeps_all = True

    def select(self, block: torch.Tensor) -> torch.Tensor:
        return block


@final
class KeepNone(BlockSelection):
    """No entry."""

    def select(self, block: torch.Tensor) -> torch.Tensor:
        return block.zero_()


class _Remembered(BlockSelection):
    """Selects by a mask that is kept in memory, one bit per entry."""

    def __init__(self) -> None:
        self._bits: Bytes | None = None
        self._position = 0

    def rewind(self) -> None:
        self._position = 0

    def select(self, block: torch.Tensor) -> torch.Tensor:
        start, count = self._position, block.numel()
        self._position += count
        keep = self._draw(count) if self._bits is None else _unpacked(self._bits, start, count)
        return keep_only(block, mask_of(from_array(keep), block))

    def _draw(self, count: int) -> npt.NDArray[np.bool_]:
        """Return which of the next entries are kept, where this does not depend on them."""
        raise AssertionError("the mask is in memory")


@final
class KeepAtRandom(_Remembered):
    """Each entry with probability `density`, as `sparsify.keep_at_random`.

    Parameters
    ----------
    start : returns a generator at the beginning of the expert's random numbers
    remember : keep what the first round draws, one bit per entry, instead of drawing it again: 2 ns per entry
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

    def _draw(self, count: int) -> npt.NDArray[np.bool_]:
        keep = np.less(torch.rand(count, generator=self._generator).numpy(), self._density)
        if self._drawn is not None:
            self._drawn.append(np.packbits(keep))  # blocks have a multiple of eight entries, except the last one
        return keep


@final
class KeepByRank(_Remembered):
    """Each entry with a probability that increases with its rank in its row, as `sparsify.keep_by_rank_at_random`.

    The mask is drawn in a pass.

    Parameters
    ----------
    length : of the rows of a matrix
    masks : draws for rows of that length
    """

    def __init__(self, num_elements: int, length: int, masks: RankMasks) -> None:
        super().__init__()
        self._remaining = num_elements
        self._length = length
        self._masks = masks
        self._rows = torch.empty(0)  # the beginning of a row of which the end is in the next block
        self._drawn: list[npt.NDArray[np.bool_]] = []
        self._packed: list[Bytes] = []

    @property
    def wants_pass(self) -> bool:
        return self._remaining > 0

    def see_sample(self, blocks: Sequence[torch.Tensor]) -> None:
        return

    def see(self, block: torch.Tensor) -> None:
        self._remaining -= block.numel()
        rows = torch.cat([self._rows, block]) if self._rows.numel() else block
        complete = rows.numel() // self._length * self._length
        self._rows = rows[complete:].clone()
        if complete:
            self._drawn.append(self._masks.next(rows[:complete].reshape(-1, self._length)).numpy().reshape(-1))
        # Whole bytes are packed; what remains begins the next one.
        joined = np.concatenate(self._drawn) if self._drawn else np.empty(0, bool)
        whole = len(joined) if not self._remaining else len(joined) // 8 * 8
        self._packed.append(np.packbits(joined[:whole]))
        self._drawn = [joined[whole:]]

    def end_pass(self) -> None:
        self._bits = np.concatenate(self._packed)
        self._packed = []


def _unpacked(bits: Bytes, start: int, count: int) -> Bytes:
    """Return `count` entries from `start`, a multiple of eight."""
    assert start % 8 == 0, start
    return np.unpackbits(bits[start // 8 : (start + count + 7) // 8], count=count)


@final
class KeepMagnitudes(BlockSelection):
    """The entries at positions [first, last) in the order of magnitudes, the largest first.

    Of entries that tie at a threshold the same are kept as in sparsify.py: the first ones in the tensor, or those that
    torch's argsort puts first.

    Parameters
    ----------
    descending : whether that argsort is of descending magnitudes; this decides which ties are kept
    """

    def __init__(self, num_elements: int, element_bytes: int, first: int, last: int, *, descending: bool) -> None:
        self._num_elements = num_elements
        self._descending = descending
        counts = (last,) if first == 0 else (last, first)
        self._searches = [ThresholdSearch(num_elements, element_bytes, count) for count in counts]
        self._parts: list[LargestPart] = []
        self._ties: list[Positions | None] | None = None

    @property
    def wants_pass(self) -> bool:
        return any(not search.is_done for search in self._searches)

    @property
    def wants_tensor(self) -> bool:
        few = any(search.result().ties_are_few(self._num_elements) for search in self._searches)
        return few and self._ties is None

    def see_sample(self, blocks: Sequence[torch.Tensor]) -> None:
        bits = [magnitude_bits(block) for block in blocks]
        for search in self._searches:
            search.sample(bits)

    def see(self, block: torch.Tensor) -> None:
        bits = magnitude_bits(block)
        for search in self._searches:
            if not search.is_done:
                search.add(bits)

    def end_pass(self) -> None:
        for search in self._searches:
            if not search.is_done:
                search.end_pass()

    def see_tensor(self, task_vector: torch.Tensor) -> None:
        thresholds = [search.result() for search in self._searches]
        self._ties = [
            kept_ties(task_vector, one, descending=self._descending) if one.splits_ties else None for one in thresholds
        ]

    def rewind(self) -> None:
        ties = self._ties or [None] * len(self._searches)
        self._parts = [LargestPart(search.result(), kept) for search, kept in zip(self._searches, ties, strict=True)]

    def select(self, block: torch.Tensor) -> torch.Tensor:
        largest = self._parts[0].select(block)
        # An entry is in both parts, with one value, or not among the outliers.
        return largest if len(self._parts) == 1 else largest.sub_(self._parts[1].select(block))


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
