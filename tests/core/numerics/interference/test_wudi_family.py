"""The filter of the parameters, and its factors together with the anchor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics import filters
from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.interference.wudi_family import (
    FilterParameters,
    anchor_factor,
    evaluate_filter,
    factors_of_filter,
    rank_by_ratio,
)
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors


def vectors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return list(torch.randn((3, 5, 8), generator=generator, dtype=torch.float64))


def spectrum() -> Spectrum:
    return decompose_interference(InMemoryTaskVectors(vectors()), route="gram")


@pytest.mark.parametrize(
    ("ratio", "columns", "expected"),
    [
        (None, 10, 10),
        (1.0, 10, 10),
        (0.65, 40, 26),
        (0.65, 41, 27),
        (0.01, 48, 1),
        (0.001, 8, 1),
        (0.5, 7, 4),
        (0.85, 3072, 2612),
    ],
)
def test_rank_ratio_rounds_up(ratio: float | None, columns: int, expected: int) -> None:
    assert rank_by_ratio(ratio, columns) == expected


@pytest.mark.parametrize("anchor", ["sum", "mean", "zero"])
def test_a_filter_of_zero_gives_the_anchor(anchor: Any) -> None:
    nothing = filters.exponential(spectrum().values, 0.0)
    factors = factors_of_filter(spectrum(), nothing, 8, anchor, 2.0)
    expected = 2.0 * anchor_factor(anchor, 3) * sum(vectors())
    torch.testing.assert_close(apply_factors(spectrum(), factors), expected)


def test_directions_beyond_the_rank_keep_the_anchor() -> None:
    everything = filters.no_filter(spectrum().values, torch.ones(8, dtype=torch.bool))
    factors = factors_of_filter(spectrum(), everything, 3, "sum", 1.0)
    assert factors.rank == 3
    assert factors.weights["sum"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert (factors.weights["target"][3:] == 0).all()
    assert "sum" not in factors_of_filter(spectrum(), everything, 3, "zero", 1.0).weights


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"filter": "none"}, torch.ones_like),
        ({"filter": "tikhonov"}, lambda values: values / (values + 0.01)),
        ({"filter": "tikhonov", "tikhonov_alpha": 0.0}, torch.ones_like),
        ({"exp_time": 2.0}, lambda values: 1 - torch.exp(-2 * values)),
        ({"exp_time": 2.0, "gamma": 2.0}, lambda values: (1 - torch.exp(-2 * values)) ** 2),
        (
            {"exp_time": 2.0, "tikhonov_alpha": 0.5},
            lambda values: (1 - torch.exp(-2 * values)) * values / (values + 0.5),
        ),
        ({"filter": "landweber", "landweber_steps": 2}, lambda values: 1 - (1 - 0.9 * values / values[0]) ** 2),
        ({"filter": "wiener"}, lambda values: values**2 / (values**2 + values[4:].mean())),
    ],
)
def test_filters_by_parameters(given: dict[str, Any], expected: Any) -> None:
    layer = spectrum()
    found = evaluate_filter(layer, FilterParameters(**given), rank=4)
    torch.testing.assert_close(found.passed, expected(layer.values))


def test_factors_that_overflow_are_an_error() -> None:
    diverging = filters.landweber(spectrum().values, 1e6, 300)
    with pytest.raises(RecipeError, match=r"overflow.*choose one below"):
        factors_of_filter(spectrum(), diverging, 8, "sum", 1.0)
