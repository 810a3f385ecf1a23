"""A recipe from wherever it is given: a file, an object in a store, its text, or the plain data of a deployment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..formats.redaction import find_secrets, redact
from ..recipe.recipe import Recipe, load_recipe, recipe_from_mapping
from ..recipe.strict_yaml import parse_yaml_mapping
from ..storage.store import locate_object


def read_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """The validated recipe.

    Parameters
    ----------
    recipe : a Recipe; a mapping; the path or URI (s3://...) of a YAML file; or the YAML itself, with a line break in it

    Raises
    ------
    RecipeError : it is no valid recipe, or it is no file and holds credentials
    StoreError : the object cannot be read
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return _without_credentials(recipe_from_mapping(recipe))
    if isinstance(recipe, str) and "\n" not in recipe and "://" in recipe:
        return recipe_from_mapping(read_recipe_mapping(recipe), redact(recipe))
    read = load_recipe(recipe)
    return _without_credentials(read) if isinstance(recipe, str) and "\n" in recipe else read


def read_recipe_mapping(recipe: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The mapping that a recipe holds, not validated yet.

    Parameters
    ----------
    recipe : path or URI of a YAML file, or the YAML itself (anything with a line break)

    Raises
    ------
    RecipeError : not a YAML mapping
    StoreError : the file cannot be read
    """
    if "\n" in recipe:
        found = parse_yaml_mapping(recipe, "recipe")
        options = found.get("storage_options")
        _refuse_recorded(options if isinstance(options, Mapping) else None)
        return found
    store, key = locate_object(recipe, storage_options)
    try:
        text = store.read(key).decode()
    except UnicodeDecodeError:
        raise RecipeError(f"{redact(recipe)}: is not text in UTF-8; expected a YAML file") from None
    return parse_yaml_mapping(text, redact(recipe))


def _without_credentials(recipe: Recipe) -> Recipe:
    _refuse_recorded(recipe.storage_options)
    return recipe


def _refuse_recorded(storage_options: Mapping[str, Any] | None) -> None:
    if find_secrets(storage_options):
        raise RecipeError(
            "storage_options: a recipe that is given as text or data may not hold credentials: Prefect records the"
            " parameters of runs; use a file, a profile or the environment"
        )
