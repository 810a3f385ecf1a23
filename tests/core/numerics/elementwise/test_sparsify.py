"""The selection rules against sorts, and the probabilities of the random ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.elementwise.sparsify import (
    Selection,
    drop_outliers,
    keep_at_random,
    keep_by_rank_at_random,
    keep_largest,
    keep_largest_values,
    kth_largest_magnitude,
    rescale_selection,
)

from ..conditioning import rounding_bound

LARGE = 70_000  # more than _SMALL, so thresholds are found by counting


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct_magnitudes(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Shuffled entries of both signs and of distinct magnitudes from 1e-30 to 1e30."""
    magnitudes = torch.logspace(-30, 30, count, dtype=torch.float64).to(dtype)
    assert magnitudes.unique().numel() == count
    signs = torch.rand(count, generator=generator()) < 0.5
    return torch.where(signs, magnitudes, -magnitudes)[torch.randperm(count, generator=generator(1))]


def coarse(count: int) -> torch.Tensor:
    """Hundreds of entries of each magnitude, as in differences of bfloat16 weights."""
    return (torch.randn(count, generator=generator()) * 50).round() / 1024


def ranks(values: torch.Tensor) -> torch.Tensor:
    """0 for the largest magnitude; of equal ones the first in the tensor comes first."""
    order = torch.argsort(values.abs(), descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(values.numel())
    return place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [1e-9, 1e-4, 0.3, 0.5, 0.99999])
def test_keep_largest(dtype: torch.dtype, density: float) -> None:
    values = distinct_magnitudes(LARGE, dtype)
    keep = keep_largest(values, density)
    assert keep is not None
    assert torch.equal(keep, ranks(values) < max(1, int(density * LARGE)))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_of_many_ties_the_first_are_kept(density: float) -> None:
    values = coarse(LARGE)
    keep = keep_largest(values.reshape(-1, 7), density)
    assert keep is not None
    count = int(density * LARGE)
    threshold = values.abs().sort(descending=True).values[count - 1]
    assert (values.abs() == threshold).sum() > 1 + (
        values.abs()[keep] == threshold
    ).sum()  # some ties are kept, others not
    assert torch.equal(keep, ranks(values) < count)


def test_few_ties_are_chosen_as_torch_argsort_does() -> None:
    values = distinct_magnitudes(LARGE)
    count = 20_000
    place = ranks(values)
    values[(place >= count - 2) & (place < count + 3)] = values[place == count].abs()  # five tie, two of them are kept
    keep = keep_largest(values, count / LARGE)
    assert keep is not None
    assert keep.sum() == count
    expected = torch.argsort(values.abs(), descending=True)[:count]
    assert torch.equal(keep.nonzero().squeeze(1), expected.sort().values)


def test_the_edges_of_density() -> None:
    values = distinct_magnitudes(100)
    assert keep_largest(values, 1.0) is None
    assert not keep_largest(values, 0.0).any()  # type: ignore[union-attr]
    assert keep_largest(values, 1e-6).sum() == 1  # type: ignore[union-attr]
    assert keep_largest(torch.empty(0, 3), 0.5).numel() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [distinct_magnitudes, coarse])
@pytest.mark.parametrize(
    ("density", "gamma"), [(0.5, 0.01), (0.5, 0.3), (0.9, 0.3), (0.3, 0.0), (0.0, 0.1), (1e-6, 0.1)]
)
@pytest.mark.parametrize("count", [1000, LARGE])
def test_drop_outliers(make: Callable[[int], torch.Tensor], density: float, gamma: float, count: int) -> None:
    values = make(count)
    keep = drop_outliers(values, density, gamma)
    assert keep is not None
    num_kept = int(density * count)
    num_outliers = min(int(gamma * count), count - num_kept)
    assert keep.sum() == num_kept
    sorted_magnitudes = values.abs().sort(descending=True).values
    expected = sorted_magnitudes[num_outliers : num_outliers + num_kept]
    assert torch.equal(values.abs()[keep].sort(descending=True).values, expected)
    if make is coarse and count == LARGE:
        place = ranks(values)
        assert torch.equal(keep, (place >= num_outliers) & (place < num_outliers + num_kept))


numbers = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 2.0**-149])


@settings(deadline=None, max_examples=150)
@given(st.lists(numbers, min_size=1, max_size=40), st.data())
def test_the_threshold_found_by_counting_is_that_of_a_sort(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    expected = sorted((abs(value) for value in values), reverse=True)[count - 1]
    for dtype in (torch.float32, torch.float64):
        assert kth_largest_magnitude(torch.tensor(values, dtype=dtype), count) == expected


@pytest.mark.parametrize("count", [1, 500, LARGE - 1, LARGE])
def test_keep_largest_values(count: int) -> None:
    values = distinct_magnitudes(LARGE).abs()
    assert torch.equal(keep_largest_values(values, count), ranks(values) < count)


def test_random_masks_do_not_depend_on_the_magnitude() -> None:
    values = distinct_magnitudes(400_000)
    keep = keep_at_random(values, 0.3, generator(5))
    assert keep is not None
    assert keep.float().mean().item() == pytest.approx(0.3, abs=0.004)  # five standard errors
    halves = keep[values.abs() > values.abs().median()]
    assert halves.float().mean().item() == pytest.approx(0.3, abs=0.006)
    assert torch.equal(keep, keep_at_random(values, 0.3, generator(5)))  # type: ignore[arg-type]
    assert keep_at_random(values, 1.0, generator()) is None
    assert not keep_at_random(values, 0.0, generator()).any()  # type: ignore[union-attr]


def test_keep_by_rank_at_random_follows_the_rank_in_the_row() -> None:
    rows = torch.randn(3000, 11, generator=generator())
    keep = keep_by_rank_at_random(rows, 0.4, 0.25, generator(1))
    assert keep is not None
    place = rows.abs().argsort(dim=1).argsort(dim=1)  # 0 for the smallest
    for rank in range(11):
        share = keep.reshape(rows.shape)[place == rank].float().mean().item()
        assert share == pytest.approx(0.15 + 0.5 * rank / 10, abs=0.045)  # five standard errors
    assert keep.float().mean().item() == pytest.approx(0.4, abs=0.014)


def test_keep_by_rank_at_random_ranks_along_the_second_dimension() -> None:
    kernels = torch.randn(40, 50, 3, 3, generator=generator())
    keep = keep_by_rank_at_random(kernels, 0.5, 0.499, generator(1))
    assert keep is not None
    place = kernels.abs().argsort(dim=1).argsort(dim=1)
    top, bottom = keep.reshape(kernels.shape)[place >= 40], keep.reshape(kernels.shape)[place < 10]
    assert top.float().mean() > 0.85
    assert bottom.float().mean() < 0.15


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (0, 4)])
def test_keep_by_rank_at_random_of_degenerate_rows(shape: tuple[int, ...]) -> None:
    keeps = [keep_by_rank_at_random(torch.ones(shape), 0.5, 0.2, generator(seed)) for seed in range(400)]
    stacked = torch.stack([keep for keep in keeps if keep is not None])
    assert stacked.shape == (400, torch.ones(shape).numel())
    if stacked.numel():
        assert stacked.float().mean().item() == pytest.approx(0.5, abs=0.13)


def test_a_block_boundary_does_not_change_the_draws() -> None:
    long = keep_at_random(torch.zeros(600_000), 0.5, generator(3))
    short = keep_at_random(torch.zeros(300_000), 0.5, generator(3))
    assert long is not None
    assert short is not None
    assert torch.equal(long[:300_000], short)


def test_rescaling_restores_the_norm() -> None:
    delta = torch.randn(50, 40, generator=generator())
    selection = rescale_selection(delta, keep_largest(delta, 0.2))
    sparse = selection.apply(delta.reshape(-1), slice(0, delta.numel()))
    assert sparse.count_nonzero() == 400
    assert sparse.abs().sum().item() == pytest.approx(
        delta.abs().sum().item(), rel=rounding_bound(1, dtype=torch.float32)
    )
    assert rescale_selection(delta, None) == Selection()
    assert rescale_selection(delta * 1e-12, keep_largest(delta, 0.2)).factor == 1.0


def test_apply_does_not_change_the_task_vector() -> None:
    delta = torch.randn(10, generator=generator())
    before = delta.clone()
    Selection(factor=2.0).apply(delta, slice(0, 10)).zero_()
    assert torch.equal(delta, before)
