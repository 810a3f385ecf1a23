"""Warnings in words: each finding alone, and none on a merge without findings."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.steps.reporting.report import ExpertReport
from eigenmerge.core.steps.reporting.warn import report_warnings

from .examples import curve, expert, layer, report


def test_a_good_merge_has_no_warning() -> None:
    assert report_warnings(report()) == []


@pytest.mark.parametrize(
    ("shares", "dominates"),
    [((0.79, 0.21), False), ((0.81, 0.19), True), ((0.66, 0.2, 0.14), False), ((0.67, 0.2, 0.13), True)],
)
def test_an_expert_dominates(shares: tuple[float, ...], dominates: bool) -> None:
    """With two experts from 80% of the squared norms, with N from twice the mean."""
    found = report_warnings(report(experts=tuple(expert(f"e{n}", share=share) for n, share in enumerate(shares))))
    assert bool(found) == dominates
    assert not dominates or found[0].startswith("e0 dominates: ")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([{"is_farther": True, "interference": 0.6}], "1 tensors are farther from every expert than the base is"),
        ([{"is_farther": True, "interference": None}, {"is_farther": True}], "1 of 2 tensors are farther"),
        ([{"notes": ("svc is ill-posed: 3 values are equal",)}], "1 tensor is ill-posed"),
        (
            [{"curves": (curve(below_floor=True),)}] * 2,
            "2 tensors are kept with directions below the level of rounding",
        ),
        (
            [{"svc_change": 0.0}, {"svc_change": 2e-4}],
            "SVC had no effect: it changed no merged delta by more than 0.0002",
        ),
        ([{"relative_delta": 0.01}, {"relative_delta": 0.02}, {}], "the result is nearly the base: in 2 of 3 tensors"),
        ([{"notes": ("kept the base: NaN",)}], "1 tensor is the base's"),
    ],
)
def test_findings_of_layers(layers: list[dict[str, Any]], expected: str) -> None:
    made = [layer(f"model.layers.{index}.w", **facts) for index, facts in enumerate(layers)]
    (found,) = report_warnings(report(*made))
    assert found.startswith(expected)


@pytest.mark.parametrize("changes", [(0.0, 0.5), (None, None)])
def test_svc_with_an_effect_or_without_svc(changes: tuple[float | None, ...]) -> None:
    assert report_warnings(report(*(layer(svc_change=change) for change in changes))) == []


def test_experts_that_are_harmed_conflict_or_did_not_arrive() -> None:
    experts = (
        expert("a", share=0.5, interference=1.3),
        ExpertReport("b", "full", (0.0, 0.0), 0.75, expert(share=0.5, interference=0.9).total),
    )
    found = report_warnings(report(experts=experts, overlap=[[1.0, -0.4], [-0.4, 1.0]], plan_warnings=("of the plan",)))
    assert [line.split(":")[0] for line in found] == [
        "a",
        "a and b conflict",
        "b",
        "b has weight 0 in every tensor",
        "of the plan",
    ]
    assert "1.30 times" in found[0] and "-0.40" in found[1] and "75.0%" in found[2]


def test_many_conflicts_are_counted() -> None:
    names = tuple(expert(f"e{n}", share=0.2) for n in range(5))
    table = [[1.0 if a == b else -0.2 for b in range(5)] for a in range(5)]
    found = report_warnings(report(experts=names, overlap=table))
    assert len(found) == 4 and found[-1] == "7 more pairs of experts conflict"
