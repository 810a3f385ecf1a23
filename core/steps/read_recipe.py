"""Read a recipe from a path, a URI, YAML text or a mapping: the only reader of recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..errors import RecipeError, suggestion
from ..formats.redaction import find_secrets, redact
from ..recipe.fields import refuse_credentials
from ..recipe.recipe import Recipe, recipe_from_mapping
from ..recipe.stages import Stage, make_stages
from ..recipe.strict_yaml import MAX_TEXT_BYTES, parse_yaml_documents, parse_yaml_mapping
from ..storage.addresses import is_local
from ..storage.backends.near_paths import near_path
from ..storage.checkpoints.find_checkpoints import expand_soups
from ..storage.reachable import check_reachable
from ..storage.store import locate_object

# The keys of a recipe, and those that mergekit's recipes have under another name.
_KNOWN_KEYS = frozenset(
    {
        *Recipe.model_fields,
        *(field.alias for field in Recipe.model_fields.values() if field.alias is not None),
        *("random_seed", "out_path"),
    }
)


def read_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """Return the validated recipe.

    Parameters
    ----------
    recipe : Recipe, mapping, str or Path
        A `Recipe` is returned unchanged. A mapping is validated. A str is the path or URI (s3://...) of a YAML file,
        or the YAML text itself.

    Raises
    ------
    RecipeError : the recipe is invalid or has several documents, its local file cannot be read, or a text or mapping
        contains credentials
    StoreError : the object at the URI cannot be read
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        _refuse_secret_options(recipe)
        return recipe_from_mapping(expand_soups(recipe))
    text, origin = _read_text(recipe)
    return recipe_from_mapping(_expand(parse_yaml_mapping(text, origin), origin), origin)


def read_stages(recipe: Recipe | Mapping[str, Any] | str | Path, destination: str) -> tuple[Stage, ...]:
    """Return the merges of a recipe in the order in which they depend on each other; one, if it has one document.

    Parameters
    ----------
    recipe : as for `read_recipe`; a text or file may have several documents
    destination : directory or URI of the result

    Raises
    ------
    RecipeError, StoreError : as `read_recipe`, and for documents that do not fit each other
    """
    if isinstance(recipe, (Recipe, Mapping)):
        return (Stage("recipe", read_recipe(recipe), destination),)
    text, origin = _read_text(recipe)
    documents = [_expand(document, origin) for document in parse_yaml_documents(text, origin)]
    return make_stages(documents, origin, destination)


def read_recipe_mapping(recipe: str | Path) -> dict[str, Any]:
    """Return the mapping of a recipe that is not complete yet, without validating it.

    Parameters
    ----------
    recipe : str or Path
        As for `read_recipe`.

    Raises
    ------
    RecipeError : not a YAML mapping, the local file cannot be read, or a text contains credentials
    StoreError : the object at the URI cannot be read
    """
    return parse_yaml_mapping(*_read_text(recipe))


def check_recorded_argument(name: str, value: object) -> None:
    """Check that an argument of a flow, which Prefect records and displays, contains no credentials.

    Parameters
    ----------
    name, value : the argument; text with an address, a recipe as text or as a mapping, or any other value

    Raises
    ------
    RecipeError : the value contains credentials, or is the text of a recipe that is not a YAML mapping
    """
    if name == "recipe" and isinstance(value, Mapping):
        _check_recorded_recipe(cast("Mapping[str, Any]", value))
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, default=str)
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return
    try:
        refuse_credentials(value)
    except ValueError as error:
        raise RecipeError(f"{name}: {error}") from None
    if name == "recipe" and _is_yaml_text(value):
        for document in parse_yaml_documents(value, "recipe"):
            _check_recorded_recipe(document)


def _expand(document: Mapping[str, Any], origin: str) -> dict[str, Any]:
    try:
        return expand_soups(document)
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from None


def _read_text(recipe: str | Path) -> tuple[str, str]:
    """Return the YAML text and its origin for error messages."""
    if isinstance(recipe, str) and _is_yaml_text(recipe):
        for document in parse_yaml_documents(recipe, "recipe"):
            _refuse_secret_options(document)
        return recipe, "recipe"
    if not isinstance(recipe, (str, Path)):
        raise RecipeError(f"recipe: expected a mapping, a path, a URI or YAML text; found {type(recipe).__name__}")
    if not str(recipe).strip():
        raise RecipeError("recipe: is empty text; expected the path or URI of a recipe, or its YAML text")
    origin = redact(str(recipe))
    try:
        if isinstance(recipe, Path) or is_local(recipe):
            return _read_local_file(recipe), origin
        check_reachable([recipe])
        store, key = locate_object(recipe)
        return store.read(key, MAX_TEXT_BYTES).decode(), origin
    except UnicodeDecodeError:
        raise RecipeError(f"{origin}: is not text in UTF-8; expected a YAML file") from None


def _is_yaml_text(recipe: str) -> bool:
    """Return whether a string is YAML: it has a line break, or has ": " and does not name an existing file."""
    if "\n" in recipe:
        return True
    try:
        return ": " in recipe and not Path(recipe).exists()
    except (OSError, ValueError):  # longer than a path may be, or with a NUL character
        return True


def _read_local_file(recipe: str | Path) -> str:
    path = recipe.partition("://")[2] if isinstance(recipe, str) and "://" in recipe else recipe
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            return file.read(MAX_TEXT_BYTES + 1)  # the parser refuses what is longer
    except UnicodeDecodeError:  # a ValueError, which the caller reports
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        hint = near_path(path) if isinstance(error, FileNotFoundError) else ""
        raise RecipeError(f"{recipe}: recipe cannot be read: {reason}{hint}") from None


def _check_recorded_recipe(recipe: Mapping[str, Any]) -> None:
    """Check a recipe, or a template without experts, that is recorded as it is written.

    A key that no recipe has may be a misspelled `storage_options`: it is refused before it is recorded.
    """
    _refuse_secret_options(recipe)
    unknown = sorted(str(key) for key in recipe if key not in _KNOWN_KEYS)
    if unknown:
        raise RecipeError(f"recipe: {unknown[0][:100]!r} is not a key of a recipe{suggestion(unknown[0], _KNOWN_KEYS)}")
    if recipe.keys() & {"models", "slices", "modules"}:
        checked = {key: value for key, value in recipe.items() if key != "out_path"}
        recipe_from_mapping(_expand(checked, "recipe"))  # keys inside of others


def _refuse_secret_options(recipe: Mapping[str, Any]) -> None:
    options = recipe.get("storage_options")
    if isinstance(options, Mapping) and find_secrets(options):
        raise RecipeError(
            "storage_options: a recipe given as text or data must not contain credentials, because Prefect records the"
            " parameters of runs; use a file, a profile or the environment"
        )
