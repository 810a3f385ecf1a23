"""Parameters of a method are validated by name and value."""

from __future__ import annotations

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.parameters import parse_parameters
from eigenmerge.core.numerics.registry import built_in_methods


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_no_number_is_nan_or_infinite(value: float) -> None:
    """Keys have no form for NaN, and NaN passes most comparisons with bounds."""
    refused = 0
    for method in built_in_methods().values():
        for model in (method.Parameters, method.Expert):
            for name, field in model.model_fields.items():
                if "float" in str(field.annotation):
                    with pytest.raises(RecipeError, match=field.alias or name):
                        parse_parameters(method, {name: value}, num_experts=2)
                    refused += 1
    assert refused > 50


def test_the_message_of_nan_names_what_is_expected() -> None:
    method = built_in_methods()["swudi_a"]
    with pytest.raises(RecipeError, match="scale is nan: Input should be a finite number"):
        parse_parameters(method, {"scale": float("nan")}, num_experts=2)
