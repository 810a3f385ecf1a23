"""Patterns of rules and filters of parameters against tensor names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError
from eigenmerge.core.planning.outputs.name_patterns import check_filters, compile_pattern, match_rule
from eigenmerge.core.recipe.parts import Rule
from eigenmerge.core.recipe.recipe import recipe_from_mapping

SWUDI = "merge_method: swudi\nbase_model: base\n"
TIES = "merge_method: ties\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("lm_haed.weight", "; did you mean"),
        ("mlp", "'*mlp*' matches 6"),
        ("model.layers.0", "'model.layers.0.*' matches 9"),
        ("re:self_atn", "did you mean 'self_attn'"),
        ("embed_tokens.weight", "matches 1"),
    ],
)
def test_a_pattern_that_matches_nothing(pattern: str, hint: str, model: Any, llama_tensors: Any, plan_of: Any) -> None:
    text = SWUDI + f"models: [a]\nrules: [{{match: '{pattern}', action: keep_base}}]"
    models = [model(name, llama_tensors()) for name in ("base", "a")]
    message = refused(RecipeError, lambda: plan_of(text, *models))
    assert message.startswith(f"rules[0].match: {pattern!r} matches no tensor")
    assert hint in message


def test_a_filter_that_is_in_no_name(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    text = TIES + "models: [{model: a, parameters: {weight: [{filter: self_atn, value: 1}, {value: 0}]}}]"
    models = [model(name, llama_tensors()) for name in ("base", "a")]
    message = refused(RecipeError, lambda: plan_of(text, *models))
    assert "models[0].parameters.weight: filter 'self_atn' is in no tensor name; did you mean 'self_attn'?" in message


def test_lm_head_of_a_tied_model_is_a_warning(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    text = TIES + "models: [a]\nparameters: {weight: [{filter: lm_head, value: 1}, {value: 0}]}"
    plan = plan_of(text, *(model(name, llama_tensors(lm_head=False)) for name in ("base", "a")))
    assert any("filter 'lm_head'" in warning for warning in plan.warnings)


def test_a_glob_matches_the_whole_name_and_a_regular_expression_a_part() -> None:
    assert compile_pattern("mlp.*").search("mlp.w")
    assert not compile_pattern("mlp.*").search("layers.0.mlp.w")
    assert compile_pattern("re:mlp").search("layers.0.mlp.w")
    assert not compile_pattern("re:^mlp").search("layers.0.mlp.w")


def test_a_rule_matches_what_any_of_its_patterns_matches() -> None:
    rule = Rule(match=["a.*", "re:b$"], action="mean")
    assert match_rule(0, rule, ["a.x", "c.b", "c.d"]) == {"a.x", "c.b"}
    with pytest.raises(RecipeError, match=r"rules\[3\]\.match: 'a\.\*' matches no tensor"):
        match_rule(3, rule, ["c.b"])


def test_filters_of_every_scope_are_checked() -> None:
    wrong = {"weight": [{"filter": "nowhere", "value": 1}, {"value": 0}]}
    part = {"sources": [{"model": "a", "layer_range": [0, 1]}]}
    recipes = {
        "parameters": {"models": ["a"], "parameters": wrong},
        "modules.default.parameters": {"modules": {"default": {"models": ["a"], "parameters": wrong}}},
        "models[0].parameters": {"models": [{"model": "a", "parameters": wrong}]},
        "slices[0].parameters": {"slices": [{**part, "parameters": wrong}]},
        "slices[0].sources[0].parameters": {"slices": [{"sources": [{**part["sources"][0], "parameters": wrong}]}]},
        "rules[0].parameters": {"models": ["a"], "rules": [{"match": "*", "parameters": wrong}]},
    }
    for place, keys in recipes.items():
        recipe = recipe_from_mapping({"merge_method": "linear", **keys})
        with pytest.raises(RecipeError) as caught:
            check_filters(recipe, ["layers.0.w"])
        assert str(caught.value).startswith(f"{place}.weight: filter 'nowhere' is in no tensor name")
