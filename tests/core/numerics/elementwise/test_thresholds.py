"""Branch-free choices, and the search for thresholds, against sorting and torch.where."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.elementwise.bit_masks import choose_by_sign, indicator, keep_only, magnitude_bits, mask_of
from eigenmerge.core.numerics.elementwise.thresholds import ThresholdSearch, find_threshold

DTYPES = [torch.float32, torch.float64]


def random(seed: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_choices_are_those_of_where(dtype: torch.dtype) -> None:
    votes, positive, negative = (random(seed, 1000, dtype) for seed in range(3))
    votes[:10] = 0.0
    expected = torch.where(votes >= 0, positive, negative)
    choose_by_sign(votes, positive, negative, positive)
    assert torch.equal(positive, expected)
    assert torch.equal(indicator(votes.abs()), (votes != 0).to(dtype))
    assert indicator(torch.tensor([-0.0, 1e-45, 3.0])).tolist() == [0.0, 1.0, 1.0]
    keep = negative > 0.5
    assert torch.equal(keep_only(negative.clone(), mask_of(keep, negative)), negative * keep)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decimals", [1, 9])
def test_thresholds_are_those_of_sorting(dtype: torch.dtype, decimals: int) -> None:
    values = random(3, 5000, dtype).round(decimals=decimals)
    descending = values.abs().sort(descending=True).values
    for count in (1, 17, 2500, 5000):
        found = find_threshold(values, count)
        magnitude = descending[count - 1]
        integer = torch.int32 if dtype == torch.float32 else torch.int64
        assert found.bits == magnitude.view(integer).item()
        assert found.num_above == int((descending > magnitude).sum())
        assert found.num_equal == int((descending == magnitude).sum())


def test_blocks_of_any_size_give_one_threshold() -> None:
    values = random(4, 4001, torch.float32)
    search = ThresholdSearch(len(values), 4, 100)
    while not search.is_done:
        for block in values.split(1000):
            search.add(magnitude_bits(block))
        search.end_pass()
    assert search.result() == find_threshold(values, 100)
