"""Patterns of rules and filters of parameters against tensor names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError

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
