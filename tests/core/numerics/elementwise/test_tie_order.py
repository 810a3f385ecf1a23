"""Which ties are kept: the choice of torch.argsort itself, so that another sort in torch is noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eigenmerge.core.numerics.elementwise import tie_order
from eigenmerge.core.numerics.elementwise.bit_masks import integer_dtype
from eigenmerge.core.numerics.elementwise.sparsify import drop_outliers, keep_largest
from eigenmerge.core.numerics.elementwise.thresholds import Threshold
from eigenmerge.core.numerics.elementwise.tie_order import kept_ties


def draw(seed: int) -> torch.Tensor:
    """Entries of a kind and number that depend on the seed: many ties, few, none, all; shuffled, sorted, periodic."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    size = (integer(1, 40), integer(40, 400), integer(400, 5000))[seed % 3]
    kind = integer(0, 8)
    values = torch.randn(size, generator=generator)
    if kind < 4:
        values = (values * (1, 3, 50, 1000)[kind]).round() / 1024
    elif kind == 4:
        values = torch.arange(size).float() * (1 - 2 * (seed % 2))
    elif kind == 5:
        values = torch.arange(size).flip(0).float() % (seed % 11 + 1)
    elif kind == 6:
        values = torch.full((size,), -0.0 if seed % 2 else 2.0**-149)
    return values.double() if seed % 4 == 0 else values


def assert_kept_as_argsort(values: torch.Tensor, count: int, *, descending: bool) -> None:
    magnitude = values.abs()
    smallest = magnitude.sort(descending=True).values[count - 1]
    keep = (magnitude > smallest).numpy()
    threshold = Threshold(
        int(smallest.view(integer_dtype(values))), int(keep.sum()), int((magnitude == smallest).sum()), count
    )
    keep[kept_ties(values, threshold, descending=descending)] = True
    order = torch.argsort(magnitude, descending=descending)
    expected = order[:count] if descending else order[len(values) - count :]
    assert np.array_equal(np.flatnonzero(keep), expected.sort().values.numpy())


@pytest.mark.parametrize("descending", [True, False])
def test_ties_are_kept_as_by_argsort(*, descending: bool) -> None:
    for seed in range(200):
        values = draw(seed)
        count = 1 + (seed * 7919) % len(values)
        assert_kept_as_argsort(values, count, descending=descending)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_large_tensors_with_any_number_of_threads(num_threads: int) -> None:
    values = (torch.randn(150_001, generator=torch.Generator().manual_seed(1)) * 1e4).round()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for descending in (True, False):
            assert_kept_as_argsort(values, 45_000, descending=descending)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_many_tensors() -> None:
    for seed in range(200, 20_000):
        values = draw(seed)
        assert_kept_as_argsort(values, 1 + (seed * 7919) % len(values), descending=seed % 5 < 2)
    for seed in range(20):
        values = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed)) * 1e5).round()
        assert_kept_as_argsort(values, 300_000 + seed, descending=seed % 2 == 0)


def test_where_sorting_falls_back_to_a_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tie_order, "_LEVELS", 0)
    values = draw(2).float().repeat(3)
    for descending in (True, False):
        for count in (1, 40, len(values) - 1):
            assert_kept_as_argsort(values, count, descending=descending)


def few_ties(dtype: torch.dtype) -> torch.Tensor:
    """More entries than are sorted, of which six tie at each of the places 40 000 and 1000 in order of magnitude."""
    values = torch.randn(80_000, generator=torch.Generator().manual_seed(2), dtype=dtype)
    order = values.abs().argsort(descending=True)
    for place in (1000, 40_000):
        values[order[place - 3 : place + 3]] = values[order[place]].abs()
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_of_few_ties(dtype: torch.dtype) -> None:
    values = few_ties(dtype)
    keep = keep_largest(values.reshape(-1, 100), 0.5)
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[torch.argsort(values.abs(), descending=True)[:40_000]] = True
    assert keep is not None and torch.equal(keep, expected)
    kept = drop_outliers(values, 0.4875, 0.0125)
    expected.zero_()[torch.argsort(values.abs())[40_000:79_000]] = True
    assert kept is not None and torch.equal(kept, expected)
