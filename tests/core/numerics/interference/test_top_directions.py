"""The directions that `spectra: top` keeps: how many, and the stated bound holds for every filter and rank rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import Factors, apply_factors
from eigenmerge.core.numerics.interference import top_directions
from eigenmerge.core.numerics.interference.top_directions import (
    TopFactors,
    count_kept,
    factors_around_anchor,
    most_directions,
)
from eigenmerge.core.numerics.rank_rules import find_rule
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

ROWS, COLUMNS, KEPT = 24, 40, 12
FILTERS: list[dict[str, Any]] = [
    {"filter": "exponential", "exp_time": 1.0},
    {"filter": "exponential", "exp_time": 300.0},
    {"filter": "exponential", "exp_time": 1300.0, "tikhonov_alpha": 0.01},
    {"filter": "none"},
    {"filter": "tikhonov", "tikhonov_alpha": 0.1},
    {"filter": "landweber"},
    {"filter": "wiener"},
    {"filter": "exponential", "exp_time": 30.0, "gamma": 2.0},
    {"filter": "exponential", "exp_time": 30.0, "gamma": 0.5},
]
RULES = [
    "none",
    "stable_rank",
    "entropy",
    "entropy_sq",
    "participation",
    "participation_sqrt",
    "participation_sqrt_plus",
    "participation_sqrt_c2",
    "gavish_donoho",
    "cumvar_0.9",
    "d_aware_participation_sqrt",
    "d_aware_cumvar",
    "loss_elbow",
    "wudi_risk",
]


def experts(decay: float, seed: int = 0, count: int = 3) -> InMemoryTaskVectors:
    """Dense float64 experts whose singular values fall as k^-decay."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, COLUMNS + 1, dtype=torch.float64) ** -decay
    basis, _ = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64))
    return InMemoryTaskVectors(
        (torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64) * scales) @ basis.T for _ in range(count)
    )


def head_of(spectrum: Spectrum, count: int) -> Spectrum:
    return Spectrum(
        spectrum.kind,
        spectrum.shape,
        spectrum.num_experts,
        spectrum.values[:count],
        spectrum.right[:count],
        {name: block[:count] for name, block in spectrum.left.items()},
    )


def from_top(spectrum: Spectrum, around: TopFactors, vectors: InMemoryTaskVectors, kept: int) -> torch.Tensor:
    total = sum(vectors, torch.zeros(ROWS, COLUMNS, dtype=torch.float64))  # pyright: ignore[reportArgumentType]
    factors = Factors(around.factors.weights, around.factors.rank, lambda: around.anchor * total)
    return apply_factors(head_of(spectrum, kept), factors)


def compare(method_name: str, decay: float, **given: Any) -> tuple[TopFactors, float]:
    """Return the factors around the anchor, and the measured error relative to the merged delta."""
    method, vectors = get_method(method_name), experts(decay)
    parameters = method.Parameters(**given)
    spectrum = method.decompose(vectors, parameters)  # pyright: ignore
    factors: Factors = method.factors(spectrum, parameters)  # pyright: ignore
    expected = apply_factors(spectrum, factors)
    around = factors_around_anchor(spectrum, factors, KEPT)
    error = torch.linalg.matrix_norm(from_top(spectrum, around, vectors, KEPT) - expected)
    return around, float(error / torch.linalg.matrix_norm(expected))


@pytest.mark.parametrize("decay", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("anchor", ["sum", "mean", "zero"])
def test_the_bound_holds_for_every_filter(anchor: str, decay: float) -> None:
    for given in FILTERS:
        around, error = compare("swudi", decay, anchor=anchor, rank_ratio=1.0, scale=0.3, **given)
        assert error <= around.error * (1 + 1e-9) + 1e-12, given
        truncated, error = compare("swudi", decay, anchor=anchor, rank_ratio=0.2, scale=0.3, **given)
        assert truncated.error == 0.0 and error < 1e-12, given  # 8 of 12 directions are filtered


@pytest.mark.parametrize("decay", [0.5, 2.0])
@pytest.mark.parametrize("rule", RULES)
def test_the_bound_holds_for_every_rank_rule(rule: str, decay: float) -> None:
    find_rule(rule)
    around, error = compare("swudi_a", decay, rank_rule=rule)
    assert error <= around.error * (1 + 1e-9) + 1e-12
    limited, error = compare("swudi_a", decay, rank_rule=rule, max_rank_ratio=KEPT / COLUMNS)
    assert limited.error == 0.0 and error < 1e-12


def test_the_bound_is_no_vacuous_one() -> None:
    """It is above the tolerance where the error is large, and below it where the error is small."""
    flat, flat_error = compare("swudi_soft", 0.1, exp_time=300.0)
    assert flat_error > 0.05 and flat.error < 20 * flat_error
    steep, steep_error = compare("swudi_soft", 9.0, exp_time=300.0)
    assert steep_error < steep.error < top_directions.TOLERANCE


def test_consensus_is_a_filter_too() -> None:
    around, error = compare("swudi", 1.0, consensus_power=1.0, rank_ratio=0.2)
    assert around.error == 0.0 and error < 1e-12


def test_a_whole_spectrum_keeps_its_factors() -> None:
    spectrum = get_method("swudi").decompose(experts(1.0), get_method("swudi").Parameters())  # pyright: ignore
    factors = Factors({"target": torch.ones(COLUMNS)}, COLUMNS)
    assert factors_around_anchor(spectrum, factors, spectrum.num_directions) == TopFactors(factors, 0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "columns", "kept"),
    [
        (torch.ones(4096), 4096, 256),  # flat: the limit
        (torch.ones(8192), 8192, 512),
        (0.5 ** torch.arange(4096.0), 4096, 256),  # ten directions hold 99.9%: the least number
        (0.98 ** torch.arange(8192.0), 8192, 342),  # 99.9%
        (torch.ones(100), 4096, 100),
        (torch.zeros(0), 64, 0),
    ],
)
def test_how_many_directions_are_kept(values: torch.Tensor, columns: int, kept: int) -> None:
    assert count_kept(values, columns) == kept <= most_directions(columns)


def test_a_result_of_zero_has_no_error() -> None:
    spectrum = get_method("swudi").decompose(experts(1.0), get_method("swudi").Parameters())  # pyright: ignore
    zero = Factors({"target": torch.zeros(COLUMNS), "sum": torch.zeros(COLUMNS)}, 0)
    assert factors_around_anchor(spectrum, zero, KEPT).error == 0.0
