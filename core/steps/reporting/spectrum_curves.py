"""The curve of one spectrum: a bounded number of values, relative to the largest, with the energy up to each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...cache.spectra.table_file import TableRow
from ..reading.rank_rows import RankRow

_MOST_POINTS = 100
_LEAST_POINTS = 12
#: Of all curves together: at about 12 bytes for a point these are 0.7 MB of a page.
_MOST_POINTS_OF_A_PAGE = 60_000
_SMALLEST = 1e-12  # relative to the largest value; smaller ones are drawn there


@dataclass(frozen=True, slots=True)
class Curve:
    """The spectrum of one matrix. Without points where the store does not have it.

    name : of the matrix
    rank : number of directions that the method kept
    count : number of directions of the decomposition, R
    singular : the values are singular values; otherwise eigenvalues, their squares
    indices : of the points, from 1 to R
    values : logarithm (base 10) of value / largest value
    energies : share of the sum of the values up to each point, 0 to 1
    floor : logarithm of the level of rounding, relative to the largest value; None where none is known
    below_floor : whether the last kept value is rounding
    """

    name: str
    rank: int
    count: int
    singular: bool
    indices: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    energies: tuple[float, ...] = ()
    floor: float | None = None
    below_floor: bool = False


def points_per_curve(num_curves: int) -> int:
    """Return the number of points that a curve may have on a page with so many."""
    return max(_LEAST_POINTS, min(_MOST_POINTS, _MOST_POINTS_OF_A_PAGE // max(1, num_curves)))


def curve_of(rank: RankRow, row: TableRow | None, points: int) -> Curve:
    """Return the curve of one matrix with at most that many points, dense where values are large."""
    if row is None:
        return Curve(rank.name, rank.rank, rank.resolved or 0, singular=False)
    spectrum = row.spectrum
    singular = not spectrum.kind.startswith(("interference", "optmerge"))
    values = spectrum.values.double()
    count = len(values)
    largest = float(values[0]) if count else 0.0
    if largest <= 0.0:
        return Curve(rank.name, rank.rank, count, singular)
    indices = sample_indices(count, points)
    held = values.clamp(min=0.0).cumsum(0)
    total = float(held[-1])
    floor = _floor(row, largest)
    last = float(values[rank.rank - 1]) / largest if 0 < rank.rank <= count else 1.0
    return Curve(
        rank.name,
        rank.rank,
        count,
        singular,
        indices,
        tuple(math.log10(max(_SMALLEST, float(values[index - 1]) / largest)) for index in indices),
        tuple(float(held[index - 1]) / total for index in indices),
        math.log10(max(_SMALLEST, floor)) if floor is not None else None,
        floor is not None and last < floor,
    )


def sample_indices(count: int, points: int) -> tuple[int, ...]:
    """Return about `points` numbers from 1 to `count`, half at equal distances, half at equal ratios."""
    if count <= points:
        return tuple(range(1, count + 1))
    half = points // 2
    even = {1 + round(step * (count - 1) / (half - 1)) for step in range(half)}
    ratio = {round(count ** (step / (half - 1))) for step in range(half)}
    return tuple(sorted(even | ratio))


def _floor(row: TableRow, largest: float) -> float | None:
    """Return the level of rounding relative to the largest value, as the decomposition stated it."""
    info = row.spectrum.info
    cut = info.get("value_cut")
    if isinstance(cut, int | float):
        return float(cut) / largest if cut > 0 else None
    noise = info.get("storage_noise")
    level = noise.get("level") if isinstance(noise, dict) else None  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    return float(level) / largest if isinstance(level, int | float) and level > 0 else None
