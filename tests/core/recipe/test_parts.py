"""Parts of a recipe."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from eigenmerge.core.recipe.parts import Calibration, InputModel, OutputOptions, Rule, RunnerOptions, SliceSource


def test_short_forms() -> None:
    assert InputModel.model_validate("a") == InputModel(model="a")
    assert OutputOptions.model_validate("adapter").format == "adapter"
    assert RunnerOptions.model_validate("ray").kind == "ray"
    assert Calibration.model_validate({"svc": None}).svc is not None
    assert Calibration.model_validate({}).svc is None
    assert Rule(match="*", action="mean").patterns == ("*",)
    assert Rule(match=["a", "re:b"], action="mean").patterns == ("a", "re:b")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "x"}, "sets nothing; expected action, method, parameters, qkv, conv or orientation"),
        ({"match": "x", "action": "keep_base", "method": "ties"}, "has both action 'keep_base' and a method"),
        ({"match": "", "action": "mean"}, "has an empty pattern"),
        ({"match": [], "action": "mean"}, "has an empty pattern"),
        ({"match": "re:(", "action": "mean"}, "is not a regular expression"),
        ({"mach": "x", "action": "mean"}, "unknown key 'mach'; did you mean 'match'?"),
    ],
)
def test_rules_that_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Rule.model_validate(rule)
    assert message in str(caught.value)


@pytest.mark.parametrize("layers", [[0], [0, 1, 2], ["a", 1], 4])
def test_a_layer_range_has_two_numbers(layers: Any) -> None:
    with pytest.raises(ValidationError, match="layer_range"):
        SliceSource.model_validate({"model": "a", "layer_range": layers})


def test_parts_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunnerOptions().workers = 3  # pyright: ignore[reportAttributeAccessIssue]
