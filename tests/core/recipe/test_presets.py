"""Published settings by name."""

from __future__ import annotations

import pytest
import yaml

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.recipe.presets import PRESETS, apply_preset
from eigenmerge.core.recipe.recipe import Recipe, recipe_from_mapping


def recipe_of(text: str) -> Recipe:
    return recipe_from_mapping(yaml.safe_load(text))


def test_a_presets_keys_are_overridden_by_the_recipes() -> None:
    recipe = recipe_of("preset: clip-vit-b32-8\nbase_model: b\nmodels: [a]\n")
    assert recipe.merge_method == "swudi"
    assert recipe.parameters == {"exp_time": 1300.0, "rank_ratio": 0.65, "scale": 1.0}
    mine = recipe_of("preset: clip-vit-b32-8\nbase_model: b\nmodels: [a]\nparameters: {exp_time: 7}\n")
    assert mine.parameters == {"exp_time": 7, "rank_ratio": 0.65, "scale": 1.0}


def test_a_multimodal_preset_keeps_all_but_the_language_matrices() -> None:
    rule = "{match: 'model.layers.0.*', action: mean}"
    recipe = recipe_of(f"preset: qwen2-vl-7b\nmerge_method: swudi_a\nmodels: [a]\nrules: [{rule}]\nlm_head: mean\n")
    assert (recipe.embeddings, recipe.lm_head, recipe.vectors, recipe.conv) == ("base", "mean", "base", "base")
    assert [item.action for item in recipe.rules] == ["mean", "keep_base"]  # the recipe's own rule is asked first
    assert recipe.parameters == {"rank_rule": "participation_sqrt", "scale": 0.2}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_recipe_for_each_of_its_methods(name: str) -> None:
    for method in PRESETS[name].methods:
        recipe = recipe_of(f"preset: {name}\nmerge_method: {method}\nbase_model: b\nmodels: [a]\n")
        assert recipe.merge_method == method


def test_a_preset_applied_twice_equals_one_applied_once() -> None:
    for name in PRESETS:
        once = apply_preset({"preset": name, "models": ["a"], "rules": [{"match": "x", "action": "mean"}]})
        assert apply_preset(once) == once
        assert once["rules"][0] == {"match": "x", "action": "mean"}


def test_a_recipe_without_preset_is_copied() -> None:
    recipe = {"merge_method": "ties", "models": ["a"]}
    assert apply_preset(recipe) == recipe
    assert apply_preset(recipe) is not recipe


@pytest.mark.parametrize("name", ["clip-vit-b32", 3])
def test_an_unknown_preset(name: object) -> None:
    with pytest.raises(RecipeError, match=f"preset {name!r} does not exist"):
        apply_preset({"preset": name})
