"""Find the checkpoints that the pattern of a soup matches, local or on any file system of fsspec."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...errors import RecipeError, StoreError
from ...formats.redaction import redact
from ...numerics.registry import get_method
from ...recipe.soup import choose_checkpoints, number_key, parse_soup, soup_entries, soup_keys
from ..addresses import is_local, is_web, select_options
from ..fsspec_calls import open_file_system


def expand_soups(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping of a recipe with a list of checkpoints where `models` is a pattern.

    The list is what is planned and recorded, so keys and the manifest name the checkpoints and not the pattern.

    Raises
    ------
    RecipeError : a pattern matches fewer than two checkpoints or is one of a web server, or a key of the soup is
        invalid
    StoreError : the store of a pattern cannot be listed
    """
    expanded = dict(document)
    options = document.get("storage_options")
    storage = cast("Mapping[str, object]", options) if isinstance(options, Mapping) else None
    method = document.get("merge_method")
    expanded |= _expand_models(document, "", storage, method)
    modules = document.get("modules")
    if isinstance(modules, Mapping):
        parts = cast("Mapping[str, Any]", modules)
        expanded["modules"] = {name: _expand_module(part, name, storage, method) for name, part in parts.items()}
    return expanded


def _expand_module(part: Any, name: str, options: Mapping[str, object] | None, method: object) -> Any:
    if not isinstance(part, Mapping):
        return part
    keys = cast("Mapping[str, Any]", part)
    return {**keys, **_expand_models(keys, f"modules.{name}.", options, method)}


def _expand_models(
    part: Mapping[str, Any], prefix: str, options: Mapping[str, object] | None, method: object
) -> dict[str, Any]:
    keys = soup_keys(part.get("models"))
    if keys is None:
        return {}
    soup = parse_soup(keys, f"{prefix}models")
    if soup.weights != "uniform" and isinstance(method, str) and "weight" not in get_method(method).Expert.model_fields:
        raise RecipeError(f"{prefix}models.weights: {method} has no weights; remove it, or choose linear")
    if is_web(soup.glob):
        raise RecipeError(
            f"{prefix}models.glob: {redact(soup.glob)} is a pattern on a web server, which has no reliable list of its"
            " files; write the address of each checkpoint as a list under models, or use a pattern on a disk or an"
            " object store"
        )
    found = sorted(find_checkpoints(soup.glob, options), key=number_key)
    return {"models": soup_entries(soup, choose_checkpoints(soup, found, f"{prefix}models"))}


def find_checkpoints(pattern: str, storage_options: Mapping[str, object] | None = None) -> list[str]:
    """Return the directories and .safetensors files that match, unordered. Hidden ones are left out.

    Parameters
    ----------
    pattern : with *, ?, [...] or **

    Raises
    ------
    StoreError : the store refused or could not be reached
    """
    if is_local(pattern):
        text = str(Path(pattern.partition("://")[2] if "://" in pattern else pattern).expanduser())
        return [path for path in glob.glob(text, recursive=True) if Path(path).is_dir() or _is_weights(path)]  # noqa: PTH207
    try:
        file_system, path = open_file_system(pattern, select_options(pattern, storage_options))
        found = file_system.glob(path, detail=True)
    except (OSError, ImportError, ValueError) as error:
        raise StoreError(f"{pattern}: cannot be listed: {error}") from None
    return [
        str(file_system.unstrip_protocol(name.rstrip("/")))
        for name, info in found.items()
        if info.get("type") == "directory" or _is_weights(name)
    ]


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors")
