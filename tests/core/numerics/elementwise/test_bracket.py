"""One pass between the bounds of a sample finds the threshold of a sort, or says that it did not."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.elementwise.bit_masks import integer_dtype, magnitude_bits
from eigenmerge.core.numerics.elementwise.bracket import Bracket
from eigenmerge.core.numerics.elementwise.thresholds import Threshold, ThresholdSearch

SIZE = 40_003


def entries(kind: str) -> torch.Tensor:
    values = torch.randn(SIZE, generator=torch.Generator().manual_seed(3))
    if kind == "bfloat16":
        return (0.02 * values).bfloat16().float()
    if kind == "ties":
        return (values * 2).round()
    if kind == "mostly zero":
        return torch.where(values.abs() > 1.3, values, values * 0.0)  # zeros of both signs
    if kind == "denormal":
        return values * 2.0**-140
    if kind == "rows differ":
        return values * torch.logspace(-3, 3, SIZE)
    if kind == "float64":
        return values.double()
    return torch.zeros(SIZE) if kind == "zero" else values


KINDS = ["float32", "bfloat16", "ties", "mostly zero", "denormal", "rows differ", "float64", "zero"]


def by_sorting(values: torch.Tensor, count: int) -> Threshold:
    magnitude = values.abs()
    smallest = magnitude.sort(descending=True).values[count - 1]
    bits = int(smallest.view(integer_dtype(values)))
    return Threshold(bits, int((magnitude > smallest).sum()), int((magnitude == smallest).sum()), count)


def search_of(values: torch.Tensor, count: int) -> ThresholdSearch:
    return ThresholdSearch(len(values), values.element_size(), count)


def passes(search: ThresholdSearch, values: torch.Tensor) -> int:
    """Make all passes in blocks, and return their number."""
    number = 0
    while not search.is_done:
        for block in values.split(7001):
            search.add(magnitude_bits(block))
        search.end_pass()
        number += 1
    return number


@pytest.mark.parametrize("kind", KINDS)
def test_the_threshold_is_that_of_sorting(kind: str) -> None:
    values = entries(kind)
    sample = [magnitude_bits(block) for block in values.split(500)[::2]]
    for count in (1, 2, 400, SIZE // 3, SIZE // 2, SIZE - 1, SIZE):
        search = search_of(values, count)
        search.sample(sample)
        number = passes(search, values)
        assert search.result() == by_sorting(values, count), count
        assert number == 1 or kind == "rows differ"


@pytest.mark.parametrize("count", [200, SIZE // 2])
def test_a_sample_that_is_not_typical_costs_passes_and_no_error(count: int) -> None:
    values = entries("float32")
    for factor in (1e-3, 1e3):
        search = search_of(values, count)
        search.sample([magnitude_bits(values[:2000] * factor)])
        assert passes(search, values) == 3
        assert search.result() == by_sorting(values, count)


def test_no_more_entries_are_collected_than_allowed() -> None:
    values = entries("float32")
    bits = magnitude_bits(values).numpy()
    for limit, found in ((SIZE, True), (50, False)):
        bracket = Bracket([bits[::40]], 0.5, limit)
        for start in range(0, SIZE, 1000):
            bracket.add(bits[start : start + 1000])
        assert (bracket.result(SIZE // 2) is not None) is found
        assert sum(len(block) for block in bracket._collected) <= limit


def test_frequent_magnitudes_are_counted_and_not_collected() -> None:
    bits = magnitude_bits(entries("ties")).numpy()
    bracket = Bracket([bits[::10]], 0.4, SIZE // 100)
    bracket.add(bits)
    expected = by_sorting(entries("ties"), int(0.4 * SIZE))
    assert bracket.result(int(0.4 * SIZE)) == (expected.bits, expected.num_above, expected.num_equal)
