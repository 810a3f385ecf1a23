"""Scores without data, against the definition: computed from the experts themselves, with dense matrices."""

from __future__ import annotations

import math

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors
from eigenmerge.core.sweep.l_curve import corner_scores
from eigenmerge.core.sweep.spectral_scores import MatrixScores, score_matrix


def experts(zero: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    vectors = [torch.randn(12, 9, generator=generator, dtype=torch.float64) * (i + 1) for i in range(3)]
    return [*vectors, torch.zeros(12, 9, dtype=torch.float64)] if zero else vectors


def objective(theta: torch.Tensor, vectors: list[torch.Tensor]) -> float:
    """WUDI's objective, arXiv:2503.08099 eq. 7."""
    return sum(float(((theta - v) @ v.T).norm() ** 2 / v.norm() ** 2) for v in vectors if v.norm() > 0)


def score(parameters: dict[str, object], zero: bool = False) -> tuple[MatrixScores, torch.Tensor, list[torch.Tensor]]:
    vectors = experts(zero)
    spectrum = decompose_interference(InMemoryTaskVectors(vectors))
    method = get_method("swudi")
    own = method.Parameters.model_validate(parameters)
    factors = method.factors(spectrum, own)  # type: ignore[union-attr]
    cross = (spectrum.left["target"] * spectrum.left["sum"]).sum(1)
    anchor = {"sum": 1.0, "mean": 1.0 / len(vectors), "zero": 0.0}[str(parameters.get("anchor", "sum"))]
    found = score_matrix(spectrum, factors, cross, anchor)
    assert found is not None
    return found, apply_factors(spectrum, factors), vectors


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [
        {"exp_time": 2.0},
        {"exp_time": 5.0, "rank_ratio": 0.5},
        {"exp_time": 3.0, "anchor": "mean", "scale": 0.3},
        {"filter": "tikhonov", "tikhonov_alpha": 0.1, "anchor": "zero"},
    ],
)
def test_scores_are_those_of_the_merged_delta(parameters: dict[str, object], zero: bool) -> None:
    found, theta, vectors = score(parameters, zero)
    solution = score({"filter": "none"}, zero)[1]
    least, nothing = objective(solution, vectors), objective(torch.zeros_like(theta), vectors)
    assert found.interference == pytest.approx((objective(theta, vectors) - least) / (nothing - least), rel=1e-6)
    root = math.sqrt(sum(float(v.norm() ** 2) for v in vectors) / len(vectors))
    assert found.norm == pytest.approx(float(theta.norm()) / root, rel=1e-6)
    anchor = {"sum": 1.0, "mean": 1.0 / len(vectors), "zero": 0.0}[str(parameters.get("anchor", "sum"))]
    assert found.distance == pytest.approx(float((theta - anchor * sum(vectors)).norm()) / root, rel=1e-6)


def test_generalized_cross_validation_is_its_definition() -> None:
    found, _, vectors = score({"exp_time": 2.0, "rank_ratio": 0.6})
    c = sum(v.T @ v / v.norm() ** 2 for v in vectors)
    values = torch.linalg.eigvalsh(c).flip(0)
    kept = torch.arange(9) < math.ceil(0.6 * 9)
    passed = torch.where(kept, 1.0 - torch.exp(-2.0 * values), 0.0)
    assert found.gcv == pytest.approx(9 * found.interference / float(9 - passed.sum()) ** 2, rel=1e-6)


def test_the_exact_solution_has_no_interference_and_no_cross_validation() -> None:
    found = score({"filter": "none"})[0]
    assert found.interference == pytest.approx(0.0, abs=1e-12)
    assert found.gcv is None


def test_experts_that_are_all_zero_have_no_scores() -> None:
    spectrum = decompose_interference(InMemoryTaskVectors([torch.zeros(4, 3), torch.zeros(4, 3)]))
    method = get_method("swudi")
    factors = method.factors(spectrum, method.Parameters())  # type: ignore[union-attr]
    assert score_matrix(spectrum, factors, torch.zeros(0, dtype=torch.float64), 1.0) is None


def test_the_corner_of_an_l_curve_is_found() -> None:
    residuals = [1.0, 0.1, 0.01, 0.009, 0.008]
    distances = [1.0, 1.1, 1.2, 10.0, 100.0]
    scores = corner_scores(residuals, distances)
    assert scores.index(max(s for s in scores if s is not None)) == 2
    assert corner_scores([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == [None] * 3
    assert corner_scores([], []) == []
