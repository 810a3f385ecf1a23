"""Keep entries with a probability that increases with the rank of their magnitude in a row (DELLA)."""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt

from ..lazy_torch import torch
from .bit_masks import from_array, magnitude_bits


@final
class RankMasks:
    """Draws which entries of rows of one length are kept, row after row.

    Cost: 15 ns per entry on one core for float32, most of it to sort; 24 bytes per entry that is given at a time.

    Parameters
    ----------
    length : of a row
    density, epsilon : the probability is density - epsilon for the smallest entry and density + epsilon for the largest
    generator : on the CPU; draws one number for each entry, in their order
    """

    def __init__(self, length: int, density: float, epsilon: float, generator: torch.Generator) -> None:
        # Of the ranks 0 .. length - 1; the entry of a row of length 1 has the average probability.
        steps = torch.arange(length, dtype=torch.float32)
        self._probabilities = density + epsilon * (2 * steps / max(length - 1, 1) - 1) * (length > 1)
        self._length = length
        self._generator = generator

    def next(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mask of the next rows.

        Parameters
        ----------
        rows : Tensor, (R, length), float32 or float64

        Returns
        -------
        Tensor, (R, length), bool, on the CPU
        """
        order = _ascending(rows)
        of_entry = torch.empty(rows.shape)
        of_entry.scatter_(1, order, self._probabilities.expand_as(order))
        return torch.rand(rows.shape, generator=self._generator) < of_entry


def _ascending(rows: torch.Tensor) -> torch.Tensor:
    """Return the stable order of the magnitudes of each row, (R, length), int64, on the CPU."""
    if rows.dtype != torch.float32 or rows.device.type != "cpu":
        return torch.argsort(rows.abs(), dim=1, stable=True).cpu()
    # Magnitude and column in one number: these are unique, so that any sort is stable, and NumPy's sorts of numbers
    # take a fifth of the time of an argsort.
    keys: npt.NDArray[np.int64] = magnitude_bits(rows).numpy().astype(np.int64)
    keys <<= 32
    keys |= np.arange(rows.shape[1])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return from_array(keys)
