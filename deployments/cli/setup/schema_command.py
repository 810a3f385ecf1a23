"""`eigenmerge schema`: print the JSON Schema of a recipe, for completion and checks in editors."""

from __future__ import annotations

from ..terminal import show_json


def schema() -> None:
    """Print the JSON Schema of a recipe, methods of installed packages included.

    Save it, and name the file in the first line of a recipe: # yaml-language-server: $schema=recipe.schema.json
    """
    from ....core.recipe.json_schema import recipe_schema

    show_json(recipe_schema())
