"""Curves of spectra: few points, both ends, energies, and the level of rounding."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.cache.spectra.table_file import TableRow
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.steps.reading.rank_rows import RankRow
from eigenmerge.core.steps.reporting.spectrum_curves import curve_of, points_per_curve, sample_indices


def row(*values: float, **info: object) -> TableRow:
    count = len(values)
    vectors = torch.empty((count, 8), device="meta")
    spectrum = Spectrum("interference", (8, 8), 2, torch.tensor(values), vectors, {"left": vectors}, info=info)
    return TableRow("w", "spectra/w.arrow", spectrum)


def kept(rank: int) -> RankRow:
    return RankRow("w", rank, 8, 4, None, None, None, "")


@pytest.mark.parametrize(("count", "points"), [(1, 12), (12, 12), (13, 12), (100_000, 100), (50, 13)])
def test_points_are_few_and_include_both_ends(count: int, points: int) -> None:
    found = sample_indices(count, points)
    assert found == tuple(sorted(set(found))) and found[0] == 1 and found[-1] == count
    assert len(found) <= points or found == tuple(range(1, count + 1))


def test_points_are_shared_by_the_curves_of_a_page() -> None:
    assert [points_per_curve(count) for count in (0, 600, 1000, 100_000)] == [100, 100, 60, 12]


def test_values_energies_and_floor() -> None:
    found = curve_of(kept(2), row(4.0, 0.04, 0.0), 12)
    assert found.indices == (1, 2, 3) and found.values == pytest.approx((0.0, -2.0, -12.0))
    assert found.energies == pytest.approx((4 / 4.04, 1.0, 1.0))
    assert found.floor is None and not found.below_floor and not found.singular


@pytest.mark.parametrize(("rank", "below"), [(1, False), (2, True), (0, False)])
def test_kept_directions_below_the_level_of_rounding(rank: int, below: bool) -> None:
    found = curve_of(kept(rank), row(4.0, 0.04, value_cut=0.4), 12)
    assert found.floor == pytest.approx(-1.0) and found.below_floor == below


def test_noise_of_storage_is_a_floor_where_no_cut_is_stated() -> None:
    found = curve_of(kept(1), row(4.0, 1.0, storage_noise={"level": 0.04}), 12)
    assert found.floor == pytest.approx(-2.0)


@pytest.mark.parametrize("values", [(), (0.0, 0.0)])
def test_a_spectrum_of_zeros_has_no_points(values: tuple[float, ...]) -> None:
    assert curve_of(kept(0), row(*values), 12).values == ()


def test_without_a_stored_spectrum() -> None:
    found = curve_of(kept(3), None, 12)
    assert (found.rank, found.values, found.floor) == (3, (), None)
