"""The recipe of a scheduled merge: a recipe file without its experts, which the registry supplies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RecipeError
from ..formats.digest import hash_json
from ..recipe.recipe import Recipe, recipe_from_mapping
from .expert_registry import RegistryScan


def complete_recipe(template: Mapping[str, Any], scan: RegistryScan) -> Recipe:
    """The template with every registered expert after the experts that it names itself.

    The sums over experts are kept unless the template says otherwise: they make the next merge incremental.

    Raises
    ------
    RecipeError : the template, completed, is no valid recipe
    """
    for key in ("slices", "modules"):
        if template.get(key):
            raise RecipeError(f"a scheduled merge takes its experts from a registry: {key} has no place in its recipe")
    registered = [{"model": expert.uri} for expert in scan.experts]
    data = {"keep_sums": True, **template, "models": [*(template.get("models") or []), *registered]}
    return recipe_from_mapping(data, "the scheduled recipe")


def template_digest(template: Mapping[str, Any], recipe: Recipe) -> str:
    """Identifies a recipe without its registered experts, secrets, and what only says where it runs."""
    fixed = len(template.get("models") or [])
    canonical = recipe.canonical()
    canonical["models"] = canonical["models"][:fixed]
    return hash_json(canonical)
