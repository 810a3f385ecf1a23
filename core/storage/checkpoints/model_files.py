"""Find the files of a model that its other files name: folders of modules, chat templates, code.

`folder.py` lists the files beside the weights. A sentence-transformers model has more in the folders that modules.json
names, a chat model may have named templates, and a model of its own architecture has Python files that `auto_map` names
(https://huggingface.co/docs/transformers/custom_models). They are copied, never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

from ...errors import CheckpointError, CorruptObjectError, ObjectNotFoundError, StoreError
from ...formats.bounded_json import LONGEST_CONFIG_BYTES, parse_json, parse_json_object
from ...formats.file_names import CONFIG_NAME, TEMPLATES_FOLDER, TOKENIZER_CONFIG_NAME
from ...formats.object_names import find_key_problem
from ...listing import ModelListing
from ..addresses import join_address
from ..backends.protocol import ObjectInfo
from ..store import Store, locate_object
from .folder import is_side_file

_MODULES_NAME = "modules.json"
_LONGEST_CODE_BYTES = 4 * 2**20
_LARGEST_MODULE_BYTES = 256 * 2**20
# What transformers follows in the Python files of a model: relative imports in the same folder.
_RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+))", re.MULTILINE)
_MODULE_NAME = re.compile(r"\w{1,100}", re.ASCII)


def complete_side_files(listing: ModelListing, options: Mapping[str, object] | None) -> ModelListing:
    """Return the listing of a model whose files are copied, with the files that its other files name.

    Cost: two listings, and a read of modules.json and of each config that can name code.

    Raises
    ------
    CheckpointError : modules.json or a config is malformed, or names a folder outside of the model
    """
    if not listing.side_files and listing.config is None:
        return listing
    anchor = next(iter(listing.side_files.values()), join_address(listing.uri, CONFIG_NAME))
    store, _ = locate_object(anchor, options)
    files = dict(listing.side_files)
    notes: list[str] = []
    for info in _list_folder(store, TEMPLATES_FOLDER):
        if info.key.endswith(".jinja"):
            files[info.key] = store.uri(info.key)
    modules = _read_modules(store, files)
    for path in [module["path"] for module in modules if module.get("path")]:
        _add_module(store, str(path), files, notes, listing.name)
    configs = {CONFIG_NAME: listing.config or {}} | {
        name: _read_config(store, name) for name in files if name.endswith("config.json") and "/" not in name
    }
    code = _add_code(store, configs, modules, files, notes, listing.name)
    return replace(listing, side_files=files, tokenizer_code=code, notes=tuple(notes))


def _list_folder(store: Store, folder: str) -> list[ObjectInfo]:
    try:
        return list(store.list(folder, recursive=False))
    except StoreError:  # a server without listings; the folder may not exist
        return []


def _read_modules(store: Store, files: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Return the entries of modules.json of a sentence-transformers model."""
    if _MODULES_NAME not in files:
        return []
    name = store.display(_MODULES_NAME)
    found = parse_json(_read(store, _MODULES_NAME), name, LONGEST_CONFIG_BYTES)
    if not isinstance(found, list):
        return []  # another program's file of this name
    entries = [cast("Mapping[str, Any]", entry) for entry in cast("list[object]", found) if isinstance(entry, Mapping)]
    for entry in entries:
        problem = find_key_problem(f"{entry['path']}/x") if entry.get("path") else None
        if problem is not None:
            raise CheckpointError(f"{name}: path {str(entry['path'])[:200]!r} is refused: {problem}; correct the path")
    return entries


def _add_module(store: Store, path: str, files: dict[str, str], notes: list[str], model: str) -> None:
    """Add the files of one module's folder; its weights are the base's."""
    folder = path.strip("/")
    left_out: list[str] = []
    for info in _list_folder(store, folder):
        name = info.key.rpartition("/")[2]
        is_weights = fnmatchcase(name, "*.safetensors")
        if is_weights and info.size <= _LARGEST_MODULE_BYTES:
            notes.append(f"{model}: {info.key} is copied, not merged")
        elif not (name == CONFIG_NAME or is_side_file(info, name)):
            left_out.append(info.key)
            continue
        files[info.key] = store.uri(info.key)
    weights = [name for name in left_out if name.endswith((".bin", ".safetensors"))]
    if weights:
        notes.append(
            f"{model}: {weights[0]} does not go with the merged model (a pickle, or too large), but modules.json names"
            " its folder; convert it to safetensors beside it"
        )


def _read_config(store: Store, name: str) -> Mapping[str, object]:
    try:
        return parse_json_object(_read(store, name), store.display(name), LONGEST_CONFIG_BYTES, finite=False)
    except ObjectNotFoundError:
        return {}


def _read(store: Store, name: str) -> bytes:
    try:
        return store.read(name, LONGEST_CONFIG_BYTES)
    except CorruptObjectError as error:
        raise CheckpointError(str(error)) from None


def _add_code(
    store: Store,
    configs: Mapping[str, Mapping[str, object]],
    modules: list[Mapping[str, Any]],
    files: dict[str, str],
    notes: list[str],
    model: str,
) -> frozenset[str]:
    """Add the Python files that the configs name, and those that these import. Return those of the tokenizer alone."""
    named = {name: set(_named_modules(config)) for name, config in configs.items()}
    types = [str(module.get("type", "")) for module in modules]
    named[_MODULES_NAME] = {
        kind.rpartition(".")[0] for kind in types if "." in kind and not kind.startswith("sentence_transformers.")
    }
    of_tokenizer = _with_imports(store, named.pop(TOKENIZER_CONFIG_NAME, set()))
    of_model = _with_imports(store, set[str]().union(*named.values()))
    found = {**of_tokenizer, **of_model}
    missing = sorted(name for name, is_there in found.items() if not is_there)
    present = sorted(name for name, is_there in found.items() if is_there)
    if missing:
        notes.append(f"{model}: auto_map names {missing[0]}, which is not there; the merged model lacks it too")
    if present:
        notes.append(f"{model}: its code goes with the merged model, unchanged: {', '.join(present)}")
    files.update((name, store.uri(name)) for name in present)
    return frozenset(name for name in present if name not in of_model)


def _named_modules(value: object) -> Iterator[str]:
    """Yield the modules of the same repository that `auto_map` entries name, at any depth of a config."""
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[str, object]", value).items():
            if key == "auto_map" and isinstance(inner, Mapping):
                for reference in _strings(list(cast("Mapping[str, object]", inner).values())):
                    module = reference.rpartition(".")[0]
                    if "--" not in reference and _MODULE_NAME.fullmatch(module):  # otherwise another repository's
                        yield module
            else:
                yield from _named_modules(inner)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _named_modules(inner)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _strings(inner)


def _with_imports(store: Store, modules: set[str]) -> dict[str, bool]:
    """Return the file of each module and of what it imports from its folder, and whether the file is there."""
    found: dict[str, bool] = {}
    waiting = sorted(modules)
    while waiting:
        name = f"{waiting.pop()}.py"
        if name in found:
            continue
        try:
            text = store.read(name, _LONGEST_CODE_BYTES).decode(errors="replace")
        except (ObjectNotFoundError, CorruptObjectError):  # not there, or longer than any code
            found[name] = False
            continue
        found[name] = True
        waiting += [first or second for first, second in _RELATIVE_IMPORT.findall(text)]
    return found
