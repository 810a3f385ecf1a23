"""Storage noise of several experts together: of sums, of stacked matrices, of differences from the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..lazy_torch import torch
from .storage_noise import StorageNoise


def sum_of(noises: Sequence[StorageNoise | None]) -> StorageNoise | None:
    """Return the noise of the sum of matrices; None where none of them has any."""
    found = [noise for noise in noises if noise is not None]
    total = found[0] if found else None
    for noise in found[1:]:
        total = noise.plus(total)
    return total


def on_top(noises: Sequence[StorageNoise | None]) -> StorageNoise | None:
    """Return the noise of matrices on top of each other, (sum of M, K); None where none of them has any.

    A matrix without noise counts as one without rows.
    """
    found = [noise for noise in noises if noise is not None]
    if not found:
        return None
    columns = torch.stack([noise.columns for noise in found]).sum(dim=0)
    return StorageNoise(torch.cat([noise.rows for noise in found]), columns, any(noise.shrinks for noise in found))


def side_by_side(noises: Sequence[StorageNoise | None]) -> StorageNoise | None:
    """Return the noise of matrices side by side, (M, sum of K); as `on_top`."""
    found = on_top([None if noise is None else noise.transposed for noise in noises])
    return None if found is None else found.transposed


def centered(noises: Sequence[StorageNoise | None], index: int) -> StorageNoise | None:
    """Return the noise of matrix `index` minus the mean of all."""
    total, count, own = sum_of(noises), len(noises), noises[index]
    if total is None or count == 1:
        return None
    shared = total.times(1.0 / count)
    return shared if own is None else own.times(math.sqrt(1.0 - 2.0 / count)).plus(shared)


def describe_noise(noise: StorageNoise | None, floor: float, level: float, share: float) -> dict[str, object]:
    """Return what a spectrum's `info` states about its noise; empty where there is none.

    Parameters
    ----------
    floor : of the singular values, 0 where directions at or below the level are kept
    level : in the unit of the spectrum's values
    share : level of the singular values relative to the largest
    """
    if noise is None or noise.energy == 0.0:
        return {}
    facts = {"level": level, "share": min(1.0, share), "deviation": noise.deviation, "shape": list(noise.shape)}
    facts["cut"] = floor > 0.0
    return {"storage_noise": facts}
