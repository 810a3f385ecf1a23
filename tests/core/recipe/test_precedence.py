"""Precedence of parameters, and their values for one tensor."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.recipe.precedence import Resolver, Resolvers, parse_scope


class Parameters(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    weight: float = 1.0
    lambda_: float = Field(default=1.0, alias="lambda", ge=0)
    mode: str = "sum"

    @model_validator(mode="after")
    def _go_together(self) -> Parameters:
        if self.mode == "none" and self.weight != 1:
            raise ValueError("mode none takes no weight")
        return self


def resolver(*raws: dict[str, Any] | None) -> Resolver:
    return Resolver(Parameters, [parse_scope(f"scope{number}", raw) for number, raw in enumerate(raws)])


def test_the_most_specific_scope_decides_name_by_name() -> None:
    found = resolver({"weight": 3}, None, {"weight": 2, "lambda": 0.5}).resolve("x", 0)
    assert found == {"weight": 3.0, "lambda": 0.5, "mode": "sum"}


def test_a_scope_without_a_matching_filter_is_skipped() -> None:
    both = resolver({"weight": [{"filter": "attn", "value": 3}]}, {"weight": 2})
    assert both.resolve("layers.0.attn.w", 0)["weight"] == 3
    assert both.resolve("layers.0.mlp.w", 0)["weight"] == 2


def test_equal_results_are_one_object() -> None:
    plain = resolver({"weight": 3})
    assert plain.resolve("a", 0) is plain.resolve("b", 1)
    filtered = resolver({"weight": [{"filter": "attn", "value": [0, 1]}, {"value": 2}]})
    assert filtered.resolve("l.0.attn.q", 0.5) is filtered.resolve("l.0.attn.k", 0.5)
    assert filtered.resolve("l.0.attn.q", 0.5) != filtered.resolve("l.0.attn.q", 0.25)


def test_parameters_of_other_methods_are_ignored() -> None:
    assert resolver({"density": 3}).resolve("x", 0)["weight"] == 1.0


def test_a_value_out_of_bounds_names_its_place_and_the_tensor() -> None:
    with pytest.raises(RecipeError, match=r"scope1\.lambda: at tensor l\.1\.w is -1: .*greater than or equal to 0"):
        resolver(None, {"lambda": -1}).resolve("l.1.w", 0)


def test_values_that_do_not_go_together() -> None:
    with pytest.raises(
        RecipeError, match=r"scope1\.weight and scope0\.mode: at tensor l\.1\.w: mode none takes no weight"
    ):
        resolver({"mode": "none"}, {"weight": 2}).resolve("l.1.w", 0)


def test_a_required_parameter_that_is_missing() -> None:
    class Needs(BaseModel):
        t: float

    with pytest.raises(RecipeError, match="t: at tensor w: Field required"):
        Resolver(Needs, []).resolve("w", 0)


def test_experts_with_equal_settings_share_a_resolver() -> None:
    resolvers = Resolvers()
    one = resolvers.get(Parameters, [parse_scope("models[0].parameters", {"weight": 2})])
    two = resolvers.get(Parameters, [parse_scope("models[1].parameters", {"weight": 2})])
    other = resolvers.get(Parameters, [parse_scope("models[2].parameters", {"weight": 3})])
    assert one is two
    assert one is not other
