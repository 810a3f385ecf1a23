"""Which keys of recipes differ, by their paths."""

from __future__ import annotations

from eigenmerge.core.recipe.differences import by_importance, differing_keys, flatten_recipe


def test_paths() -> None:
    recipe = {"models": [{"model": "a", "parameters": {"weight": 0.8}}], "scale": [0.1, 0.2], "rules": [], "x": {}}
    assert flatten_recipe(recipe) == {
        "models[0].model": "a",
        "models[0].parameters.weight": 0.8,
        "scale": [0.1, 0.2],  # a gradient is one value
        "rules": [],
        "x": {},
    }


def test_only_what_differs() -> None:
    same = {"merge_method": "swudi"}
    found = differing_keys([same | {"a": 1}, same | {"a": 2}, same | {"b": None}])
    assert found == {"a": [1, 2, None], "b": [None, None, None]}
    assert differing_keys([same, same]) == {} and differing_keys([same]) == {} and differing_keys([]) == {}


def test_what_changes_every_tensor_comes_first() -> None:
    paths = [
        "dtype",
        "runner.kind",
        "models[0].model",
        "models[10].parameters.weight",
        "parameters.scale",
        "base_model",
    ]
    assert by_importance([*paths, "merge_method"]) == ["merge_method", *reversed(paths[4:]), *paths[2:4], *paths[:2]]
