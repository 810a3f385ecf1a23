"""Which tensors are merged, averaged or copied: rules, then the kind of tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError
from eigenmerge.core.planning.outputs.choose_action import ActionChooser
from eigenmerge.core.recipe.recipe import recipe_from_mapping

SWUDI = "merge_method: swudi\nbase_model: base\n"
Q = "model.layers.0.self_attn.q_proj.weight"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("choice", ["base", "mean", "merge"])
def test_embeddings_and_lm_head_by_choice(
    choice: str, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    text = SWUDI + f"models: [a]\nembeddings: {choice}\nlm_head: {choice}"
    found = tensors_of(plan_of(text, model("base", llama_tensors()), model("a", llama_tensors())))
    action = {"base": "copy"}.get(choice, choice)
    assert found["model.embed_tokens.weight"].action == action
    assert found["lm_head.weight"].action == action


def test_buffers_empty_tensors_and_convolutions(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"position_ids": (1, 8), "rotary_emb.inv_freq": (4,), "none.weight": (0, 4), "conv.weight": (6, 3, 2, 2)}
    models = [model(name, names, dtype={"position_ids": "I64"}) for name in ("base", "a")]
    found = tensors_of(plan_of(SWUDI + "models: [a]", *models))
    assert [found[name].action for name in names] == ["copy", "copy", "copy", "mean"]
    assert found["position_ids"].out_dtype == "I64"
    found = tensors_of(plan_of(SWUDI + "models: [a]\nconv: matrix", *models))
    assert found["conv.weight"].matrix_shape == (6, 12)
    assert found["conv.weight"].spectrum_key is not None
    assert tensors_of(plan_of(SWUDI + "models: [a]\nconv: base", *models))["conv.weight"].action == "copy"


def test_the_first_rule_decides(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    rules = (
        "rules:\n"
        "  - {match: 'model.layers.0.*', action: keep_base}\n"
        "  - {match: ['*.mlp.*', 're:o_proj'], method: iso_c, parameters: {scale: 1.3}}\n"
        "  - {match: '*', parameters: {exp_time: 7}}\n"
    )
    models = [model(name, llama_tensors()) for name in ("base", "a", "b")]
    found = tensors_of(plan_of(SWUDI + "models: [a, b]\nparameters: {exp_time: 9, scale: 2}\n" + rules, *models))
    assert found[Q].action == "copy"
    assert found[Q].reason == "rule 'model.layers.0.*': base kept"
    iso = found["model.layers.1.mlp.up_proj.weight"]
    assert (iso.method, iso.parameters["scale"]) == ("iso_c", 1.3)  # a rule's method has only the rule's parameters
    assert found["model.layers.1.self_attn.o_proj.weight"].method == "iso_c"
    swudi = found["model.layers.1.self_attn.q_proj.weight"]
    assert (swudi.method, swudi.parameters["exp_time"], swudi.parameters["scale"]) == ("swudi", 7, 2)
    assert found["model.layers.1.input_layernorm.weight"].action == "mean"


def test_a_direct_method_for_some_tensors(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    text = SWUDI + "models: [{model: a, parameters: {weight: 0.3}}]\nrules: [{match: '*norm*', method: ties}]"
    found = tensors_of(plan_of(text, model("base", llama_tensors()), model("a", llama_tensors())))
    norm = found["model.norm.weight"]
    assert (norm.action, norm.method) == ("merge", "ties")
    assert norm.experts[0].parameters["weight"] == 0.3


def test_merge_forces_the_embeddings(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    text = (
        SWUDI + "models: [a]\nrules: [{match: '*embed_tokens*', action: merge}, {match: lm_head.weight, action: mean}]"
    )
    found = tensors_of(plan_of(text, model("base", llama_tensors()), model("a", llama_tensors())))
    assert found["model.embed_tokens.weight"].action == "merge"
    assert found["lm_head.weight"].action == "mean"


def test_a_rule_that_earlier_rules_override_is_a_warning(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    text = SWUDI + "models: [a]\nrules: [{match: '*', action: mean}, {match: '*norm*', action: keep_base}]"
    plan = plan_of(text, *(model(name, llama_tensors()) for name in ("base", "a")))
    assert any("rules[1] (*norm*) decides nothing" in warning for warning in plan.warnings)


def chooser(*names: str, **keys: Any) -> ActionChooser:
    recipe = {"merge_method": "swudi", "base_model": "base", "models": ["a"], **keys}
    return ActionChooser(recipe_from_mapping(recipe), names)


def test_each_setting_is_taken_from_the_first_rule_that_sets_it() -> None:
    rules = [
        {"match": "x.*", "conv": "base"},
        {"match": "*", "conv": "matrix", "qkv": "split"},
        {"match": "*", "qkv": "stored", "parameters": {"scale": 2}},
        {"match": "*", "action": "mean"},
    ]
    actions = chooser("x.w", "y.w", rules=rules)
    assert actions.choose("x.w", "conv").action == "copy"
    assert actions.choose("y.w", "conv").action == "merge"
    assert actions.choose("y.w", "matrix").split_qkv
    assert actions.choose("y.w", "matrix").rule == 2
    assert actions.choose("y.w", "matrix").action == "merge"
    assert actions.warnings == ["rules[3] (*) decides nothing: earlier rules take all it matches"]


def test_no_rule_merges_buffers_and_tensors_without_elements() -> None:
    actions = chooser("w", rules=[{"match": "*", "action": "merge"}])
    assert [actions.choose("w", kind).action for kind in ("buffer", "empty")] == ["copy", "copy"]
    kept = chooser("w", rules=[{"match": "*", "action": "keep_base"}])
    assert kept.choose("w", "buffer").reason == "rule '*': base kept"


def test_vectors_stay_means_under_a_rule_that_forces_the_merge() -> None:
    actions = chooser("w", rules=[{"match": "*", "action": "merge"}])
    assert [actions.choose("w", kind).action for kind in ("vector", "lm_head", "embedding")] == [
        "mean",
        "merge",
        "merge",
    ]
