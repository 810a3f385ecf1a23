"""Recipe of a scheduled merge: a recipe without experts, to which the registered experts are added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RecipeError
from ..formats.digest import hash_json
from ..recipe.recipe import Recipe, recipe_from_mapping
from .expert_registry import RegistryScan


def complete_recipe(template: Mapping[str, Any], scan: RegistryScan) -> Recipe:
    """Return the template with every registered expert after the experts that the template names.

    Sums over experts are kept unless the template sets keep_sums: they make the next merge incremental.

    Raises
    ------
    RecipeError : the completed template is not a valid recipe, or it has slices or modules
    """
    for key in ("slices", "modules"):
        if template.get(key):
            raise RecipeError(f"{key}: is not supported in a scheduled merge, whose experts come from a registry")
    if isinstance(template.get("models"), Mapping):
        raise RecipeError("models: a pattern is not supported in a scheduled merge, whose experts come from a registry")
    models: list[object] = [*(template.get("models") or []), *({"model": expert.uri} for expert in scan.experts)]
    recipe: dict[str, object] = {"keep_sums": True, **template, "models": models}
    return recipe_from_mapping(recipe, "the scheduled recipe")


def template_digest(template: Mapping[str, Any], recipe: Recipe) -> str:
    """Hash a completed recipe without its registered experts, secrets, and settings that do not change the result."""
    num_own = len(template.get("models") or [])
    canonical = recipe.canonical()
    canonical["models"] = canonical["models"][:num_own]
    return hash_json(canonical)
