"""The forms of a parameter in a recipe, as in mergekit."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from eigenmerge.core.errors import suggestion
from eigenmerge.core.recipe.settings import MISSING, accept_value, check_values, evaluate, parse_setting, type_adapters

NUMBER: TypeAdapter[Any] = TypeAdapter(float)
WORD: TypeAdapter[Any] = TypeAdapter(str)
WHOLE: TypeAdapter[Any] = TypeAdapter(int)


def value(raw: Any, name: str = "model.layers.0.mlp.up_proj.weight", t: float = 0.0, adapter: Any = NUMBER) -> Any:
    return evaluate(parse_setting(raw), adapter, name, t)


def test_one_value() -> None:
    assert value(0.5) == 0.5
    assert value("1e-5") == 1e-5  # YAML reads it as a word


def test_a_gradient_is_linear_between_its_ends() -> None:
    assert [value([0, 1, 0], t=t) for t in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert value([0.3], t=0.7) == 0.3
    assert value(["0", "1e1"], t=0.5) == 5


def test_a_gradient_of_words_selects_an_entry() -> None:
    assert [value(["sum", "mean"], t=t, adapter=WORD) for t in (0, 0.9, 1)] == ["sum", "sum", "mean"]


def test_the_first_filter_that_fits_decides() -> None:
    raw = [{"filter": "mlp", "value": [0, 1]}, {"filter": "attn", "value": 3}, {"value": 7}]
    assert value(raw, "layers.3.mlp.w", t=0.5) == 0.5
    assert value(raw, "layers.3.attn.mlp.w", t=0.5) == 0.5
    assert value(raw, "layers.3.attn.w") == 3
    assert value(raw, "norm") == 7
    assert value([{"filter": "*", "value": 2}, {"value": 1}], "norm") == 2


def test_no_filter_fits() -> None:
    assert value([{"filter": "mlp", "value": 1}], "norm") is MISSING
    assert value({"filter": "mlp", "value": 1}, "norm") is MISSING


def test_an_integer_parameter_refuses_an_interpolated_fraction() -> None:
    with pytest.raises(ValueError, match=r"is 0\.5"):
        value([0, 1], t=0.5, adapter=WHOLE)
    assert value([0, 2], t=0.5, adapter=WHOLE) == 1


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([], "empty list"),
        ([1, {"value": 2}], "mixes"),
        ({"filter": "x"}, "has no `value`"),
        ({"fitler": "x", "value": 1}, "did you mean 'filter'"),
        ({"filter": 3, "value": 1}, "has filter 3"),
        ([[1, 2]], "is a list"),
        ({"value": {"a": 1}}, "is a dict"),
    ],
)
def test_other_forms_are_refused(raw: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_setting(raw)


def test_every_end_of_a_gradient_is_checked() -> None:
    check_values(parse_setting([{"filter": "a", "value": [0, 1]}, {"value": "2"}]), NUMBER)
    with pytest.raises(ValueError, match="'high'"):
        check_values(parse_setting([{"filter": "a", "value": [0, "high"]}]), NUMBER)


class Parameters(BaseModel):
    lambda_: float = Field(default=1.0, alias="lambda", ge=0)
    density: float = Field(default=1.0, le=1)


def test_adapters_have_the_recipes_names_and_the_bounds() -> None:
    adapters = type_adapters(Parameters)
    assert set(adapters) == {"lambda", "density"}
    with pytest.raises(ValueError, match="less than or equal to 1"):
        value(1.5, adapter=adapters["density"])


def test_suggestions() -> None:
    assert suggestion("wieght", ["weight", "density"]) == "; did you mean 'weight'?"
    assert suggestion("zzz", ["weight"]) == "; known: weight"
    assert suggestion("zzz", [str(number) for number in range(100)]) == ""


def test_true_is_no_number() -> None:
    with pytest.raises(ValueError, match="is True: expected a number"):
        accept_value(TypeAdapter(float), True)
    assert accept_value(TypeAdapter(bool), True) is True
    assert accept_value(TypeAdapter(float), 1) == 1.0
