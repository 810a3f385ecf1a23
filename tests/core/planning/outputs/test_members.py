"""The models of a merge: the base among them, and how many a method takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.planning.outputs.members import GroupBuilder, check_needs_base, is_same_model
from eigenmerge.core.recipe.recipe import recipe_from_mapping

TIES = "merge_method: ties\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_task_vector_method_needs_a_base(model: Any, plan_of: Any) -> None:
    for method in ("swudi", "ties"):
        models = [model(name, {"w.weight": (4, 4)}) for name in ("a", "b")]
        message = refused(RecipeError, lambda m=method, ms=models: plan_of(f"merge_method: {m}\nmodels: [a, b]", *ms))
        assert message.startswith("base_model: is missing")


def test_a_base_listed_among_the_models_is_dropped(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    plan = plan_of(TIES + "models: [base, a]", *models)
    assert [expert.expert for expert in tensors_of(plan)["w.weight"].experts] == [1]
    assert any("base is listed among the models" in warning for warning in plan.warnings)


def test_linear_keeps_a_listed_base(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    plan = plan_of("merge_method: linear\nbase_model: base\nmodels: [base, a]", *models)
    assert {expert.expert: expert.is_base for expert in tensors_of(plan)["w.weight"].experts} == {0: True, 1: False}


def test_linear_with_a_global_weight_averages_it_as_mergekit_does(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    text = "merge_method: linear\nbase_model: base\nmodels: [{model: a, parameters: {weight: 3}}]\n"
    plan = plan_of(text + "parameters: {weight: 1}", *models)
    found = {e.is_base: e.parameters["weight"] for e in tensors_of(plan)["w.weight"].experts}
    assert found == {False: 3, True: 1}
    assert len(tensors_of(plan_of(text, *models))["w.weight"].experts) == 1


def test_the_number_of_models(model: Any, plan_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a", "b", "c")]
    slerp = "merge_method: slerp\nbase_model: base\nparameters: {t: 0.5}\nmodels: [a, b, c]"
    assert "slerp takes at most 2 models; found 3" in refused(RecipeError, lambda: plan_of(slerp, *models))
    two = slerp.replace("a, b, c", "a, b")
    assert "slerp merges exactly 1 model beside the base; found 2" in refused(
        RecipeError, lambda: plan_of(two, *models)
    )
    stock = "merge_method: model_stock\nbase_model: base\nmodels: [a]"
    assert "model_stock needs at least 2 models; found 1" in refused(RecipeError, lambda: plan_of(stock, *models))


def test_two_listings_are_one_model_if_location_and_adapter_agree(model: Any, adapter: Any) -> None:
    one = model("a", {"w": (1,)}, uri="/models/x")
    part = adapter("b", {"base_model.model.w.lora_A.weight": (2, 6)})
    assert is_same_model(one, model("other name", {"w": (1,)}, uri="/models/x"))
    assert not is_same_model(one, model("a", {"w": (1,)}, uri="/models/y"))
    assert not is_same_model(one, model("a", {"w": (1,)}, uri="/models/x", adapter=part.adapter))


def test_the_base_is_dropped_from_each_slice_and_gives_the_first_layer(model: Any, llama_tensors: Any) -> None:
    sources = [{"model": "base", "layer_range": [1, 2]}, {"model": "a", "layer_range": [0, 1]}]
    only_expert = [{"model": "a", "layer_range": [1, 2]}]
    recipe = recipe_from_mapping(
        {"merge_method": "ties", "base_model": "base", "slices": [{"sources": sources}, {"sources": only_expert}]}
    )
    base, a = model("base", llama_tensors(2)), model("a", llama_tensors(2))
    warnings: list[str] = []
    builder = GroupBuilder(recipe, get_method("ties"), {"base": base}, [base, a], warnings)
    groups, lengths = builder.build(recipe.regions[0])
    assert lengths == [1, 1]
    assert [[member.expert for member in group.members] for group in groups] == [[1], [1]]
    assert [group.base_first_layer for group in groups] == [1, 1]
    assert warnings == ["slices[0]: the base is listed among the models and is not merged as an expert"]


def test_rules_may_need_the_base_where_the_method_does_not() -> None:
    recipe = {"merge_method": "linear", "models": ["a"], "rules": [{"match": "*", "action": "keep_base"}]}
    with pytest.raises(RecipeError, match=r"base_model: is missing; rules with keep_base"):
        check_needs_base(recipe_from_mapping(recipe), get_method("linear"), has_base=False)
    check_needs_base(recipe_from_mapping(recipe), get_method("linear"), has_base=True)
