"""Grids: what is written, which values it has, and every mistake in one line before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.sweep.grid import (
    Axis,
    Interval,
    all_settings,
    corner_settings,
    describe,
    make_axes,
    parse_grid,
)


def values(text: str, name: str = "rank_ratio", method: str = "swudi") -> tuple[Any, ...]:
    return make_axes({name: text}, method)[0].values


def test_a_range_has_both_ends_and_no_rounding() -> None:
    assert values("0.5:0.95:0.05") == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert values("0.9:0.6:-0.1") == (0.9, 0.8, 0.7, 0.6)
    assert values("0.1:0.35:0.1") == (0.1, 0.2, 0.3)
    assert values("50:150:50", "landweber_steps") == (50, 100, 150)


def test_values_have_the_type_of_the_parameter() -> None:
    assert values("100, 3e2,1300", "exp_time") == (100.0, 300.0, 1300.0)
    assert values("null,0.5") == (None, 0.5)
    assert values("entropy,cumvar_0.9", "rank_rule", "swudi_a") == ("entropy", "cumvar_0.9")
    assert make_axes({"weight": [1, 0.5]}, "task_arithmetic")[0].values == (1.0, 0.5)


def test_every_combination_once() -> None:
    axes = make_axes({"exp_time": "1,2", "rank_ratio": "0.5,0.6,0.7"}, "swudi")
    assert [tuple(one.values()) for one in all_settings(axes)] == [
        (1.0, 0.5), (1.0, 0.6), (1.0, 0.7), (2.0, 0.5), (2.0, 0.6), (2.0, 0.7),
    ]  # fmt: skip
    corners = list(corner_settings(axes))
    assert all(any(one[axis.name] == value for one in corners) for axis in axes for value in axis.values)
    assert describe({"exp_time": 300.0, "rank_ratio": None, "rank_rule": "entropy"}) == (
        "exp_time=300, rank_ratio=null, rank_rule=entropy"
    )


def test_intervals_are_for_optimizers() -> None:
    (axis,) = make_axes({"exp_time": "10..3000:log"}, "swudi", intervals=True)
    assert axis == Axis("exp_time", (), Interval(10.0, 3000.0, log=True))
    with pytest.raises(RecipeError, match="needs --optimizer"):
        make_axes({"exp_time": "10..3000"}, "swudi")


@pytest.mark.parametrize(
    ("grid", "method", "message"),
    [
        ({"rank_rato": "0.5"}, "swudi", "swudi has no such parameter; did you mean 'rank_ratio'"),
        ({"densty": "0.5"}, "ties", "did you mean 'density'"),
        ({"rank_ratio": "0.5,1.5"}, "swudi", "rank_ratio: is 1.5"),
        ({"exp_time": "fast"}, "swudi", "exp_time: is 'fast'"),
        ({"exp_time": "100,1e2"}, "swudi", "has 100 twice"),
        ({"exp_time": "1:3:0"}, "swudi", "never reaches"),
        ({"exp_time": "1:3:-1"}, "swudi", "never reaches"),
        ({"exp_time": "1:x:1"}, "swudi", "is no range"),
        ({"exp_time": "1:2"}, "swudi", "is no range"),  # 62 in YAML
        ({"exp_time": "1:3:1,5"}, "swudi", "is no range"),
        ({"exp_time": "0:1:1e-9"}, "swudi", "values; expected at most"),
        ({"exp_time": "0:1:1e-300"}, "swudi", "has 1e+300 values; expected at most"),
        ({"exp_time": "0:1:1e-99999999"}, "swudi", "never reaches"),
        ({"exp_time": "0:1e99999999:1"}, "swudi", "has no end"),
        ({"exp_time": "snan:1:1"}, "swudi", "is no range"),
        ({"exp_time": "1,,2"}, "swudi", "empty value"),
        ({"exp_time": "[1]"}, "swudi", "is not one value"),
        ({"exp_time": []}, "swudi", "has no values"),
        ({"exp_time": [[1, 2]]}, "swudi", "has a list"),
        ({"exp_time": "3..1"}, "swudi", "is empty"),
        ({"exp_time": "0..1:log"}, "swudi", "has no logarithm"),
        ({"exp_time": "1..2:lg"}, "swudi", "unknown scale 'lg'; did you mean 'log'"),
        ({"scale": "inf"}, "swudi", "scale"),
        ({}, "swudi", "is missing"),
        ({"exp_time": list(range(200)), "scale": list(range(200))}, "swudi", "makes 40000 candidates"),
    ],
)
def test_mistakes(grid: dict[str, Any], method: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        make_axes(grid, method, intervals=".." in str(grid))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("texts", [["exp_time"], ["=1"], ["exp_time="], ["exp_time=1", "exp_time=2"]])
def test_arguments_that_are_no_grid(texts: list[str]) -> None:
    with pytest.raises(RecipeError, match="--grid"):
        parse_grid(texts)
