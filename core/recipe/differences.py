"""Which keys of recorded recipes differ: between the points of a sweep, or between two merges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

# The beginnings of paths, from what changes every tensor to what changes none.
_IMPORTANCE = (
    "merge_method",
    "base_model",
    "parameters",
    "calibration",
    "rules",
    "models",
    "slices",
    "modules",
    "embeddings",
    "lm_head",
    "vectors",
    "conv",
    "qkv",
    "storage_noise",
    "arithmetic",
    "dtype",
    "out_dtype",
)


def flatten_recipe(recipe: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a recipe by their path, such as {"models[1].parameters.weight": 0.8}.

    Parameters
    ----------
    recipe : JSON data, as `Recipe.canonical()`; values that are no mapping and no list are kept as they are
    """
    found: dict[str, object] = {}

    def visit(value: object, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in cast("Mapping[str, object]", value).items():
                visit(inner, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list) and any(
            isinstance(entry, Mapping | list) for entry in cast("list[object]", value)
        ):
            for index, inner in enumerate(cast("list[object]", value)):
                visit(inner, f"{path}[{index}]")
        else:
            found[path] = value

    visit(recipe, "")
    return found


def differing_keys(recipes: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Return the paths whose values are not equal in all recipes, with the value in each; None where it is not set."""
    flat = [flatten_recipe(recipe) for recipe in recipes]
    paths = dict.fromkeys(path for one in flat for path in one)
    missing = object()
    rows: dict[str, list[object]] = {}
    for path in paths:
        values = [one.get(path, missing) for one in flat]
        if any(value != values[0] for value in values[1:]):
            rows[path] = [None if value is missing else value for value in values]
    return rows


def by_importance(paths: Iterable[str]) -> list[str]:
    """Return paths of a recipe from what changes every tensor to what changes none, else in their order."""

    def place(path: str) -> int:
        key = re.split(r"[.\[]", path, maxsplit=1)[0]
        return _IMPORTANCE.index(key) if key in _IMPORTANCE else len(_IMPORTANCE)

    return sorted(paths, key=place)
