"""Recipes of several YAML documents that use each other's results, as mergekit-multi reads them.

    name: first                        a stage; another document names it as a model
    merge_method: slerp
    ...
    ---
    merge_method: ties                 without a name: the result
    models: [{model: first}, ...]

The older form of mergekit-mega names a stage by `out_path`; other documents then refer to that path.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ..errors import RecipeError
from .recipe import Recipe, recipe_from_mapping

_STAGE_NAME = re.compile(r"[\w][\w.+ @-]*(/[\w][\w.+ @-]*)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stage:
    """One merge of several that depend on each other.

    label : for messages: the name, or "document 3"
    destination : where its result is written
    uses : destinations of the stages that it reads
    """

    label: str
    recipe: Recipe
    destination: str
    uses: tuple[str, ...] = ()


def allow_mixed_architectures(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages with `allow_mixed_architectures: true` in their recipes."""
    changes = {"allow_mixed_architectures": True}
    return tuple(replace(stage, recipe=stage.recipe.model_copy(update=changes)) for stage in stages)


@dataclass(frozen=True, slots=True)
class _Document:
    label: str
    name: str | None
    content: Mapping[str, Any]
    uses: tuple[str, ...]  # names


def make_stages(documents: Sequence[Mapping[str, Any]], origin: str, destination: str) -> tuple[Stage, ...]:
    """Return the stages in an order in which each can be merged; the result is the last one.

    The document without a name, or the only one whose result no other uses, is written to `destination`, and the others
    beside it, to DESTINATION.stages/NAME. Where several results are used by no other, each is written to
    DESTINATION/NAME.

    Parameters
    ----------
    documents : the mappings of one YAML text
    origin : for messages
    destination : directory or URI of the result

    Raises
    ------
    RecipeError : a document is invalid, two have one name, two have none, or they use each other in a circle
    """
    if len(documents) == 1:
        return (Stage("recipe", recipe_from_mapping(documents[0], origin), destination),)
    read = _read_documents(documents, origin)
    places = _choose_places(read, destination)
    stages: list[Stage] = []
    for document in _in_order(read, origin):

        def locate(name: str) -> str:
            return places[name]

        content = _replace_names(document.content, {key for key in places if key is not None}, locate)
        content.pop("out_path", None)
        recipe = recipe_from_mapping(content, f"{origin}: {document.label}")
        uses = tuple(places[name] for name in document.uses)
        stages.append(Stage(document.label, recipe, places[document.name], uses))
    return tuple(stages)


def _read_documents(documents: Sequence[Mapping[str, Any]], origin: str) -> list[_Document]:
    names = [_name_of(document, f"{origin}: document {number}") for number, document in enumerate(documents, 1)]
    for name in names:
        if names.count(name) > 1:
            what = f"are named {name!r}" if name else "have no name"
            raise RecipeError(f"{origin}: {names.count(name)} documents {what}; give each a `name` of its own")
    known = {name for name in names if name is not None}
    read: list[_Document] = []
    for number, (document, name) in enumerate(zip(documents, names, strict=True), 1):
        uses: dict[str, None] = {}

        def note(used: str, uses: dict[str, None] = uses) -> str:
            uses[used] = None
            return used

        _replace_names(document, known, note)
        read.append(_Document(repr(name) if name else f"document {number}", name, document, tuple(uses)))
    return read


def _name_of(document: Mapping[str, Any], place: str) -> str | None:
    name = document.get("name") or document.get("out_path")
    if name is None:
        return None
    if not isinstance(name, str):
        raise RecipeError(f"{place}: name is {name!r}; expected a word")
    if document.get("name") is None:
        return _normalize(name)
    if not _STAGE_NAME.fullmatch(name):
        raise RecipeError(f"{place}: name is {name!r}; expected letters, digits and . _ + - (it names a folder)")
    return name


def _normalize(path: str) -> str:
    return path if "://" in path else posixpath.normpath(path)


def _choose_places(documents: Sequence[_Document], destination: str) -> dict[str | None, str]:
    """Return the destination of each document by its name."""
    root = destination.rstrip("/") or destination
    used = {name for document in documents for name in document.uses}
    results = [document.name for document in documents if document.name not in used]
    if None in results:
        final: str | None = None
    elif len(results) == 1:
        final = results[0]
    else:
        folders = {document.name: root if document.name in results else f"{root}.stages" for document in documents}
        return {name: f"{folder}/{_folder_name(name)}" for name, folder in folders.items()}
    return {
        document.name: destination if document.name == final else f"{root}.stages/{_folder_name(document.name)}"
        for document in documents
    }


def _folder_name(name: str | None) -> str:
    assert name is not None
    return name if _STAGE_NAME.fullmatch(name) and ".." not in name.split("/") else re.sub(r"[^\w.-]+", "_", name)


def _in_order(documents: Sequence[_Document], origin: str) -> list[_Document]:
    """Return the documents, each after those that it uses, the result last."""
    by_name = {document.name: document for document in documents}
    done: dict[str | None, _Document] = {}

    def visit(document: _Document, path: tuple[str | None, ...]) -> None:
        if document.name in done:
            return
        if document.name in path:
            circle = [str(name) for name in (*path[path.index(document.name) :], document.name)]
            raise RecipeError(f"{origin}: documents use each other's results in a circle: {' -> '.join(circle)}")
        for used in document.uses:
            visit(by_name[used], (*path, document.name))
        done[document.name] = document

    for document in sorted(documents, key=lambda item: item.name is None):
        visit(document, ())
    return list(done.values())


def _replace_names(document: Mapping[str, Any], names: set[str], replace: Callable[[str], str]) -> dict[str, Any]:
    """Return the document with `replace(name)` wherever it refers to a model by one of `names`."""

    def reference(value: Any) -> Any:
        if isinstance(value, str):
            model, plus, lora = value.partition("+")
            for text, rest in ((value, ""), (model, plus + lora)):
                for candidate in (text, _normalize(text) if text else text):
                    if candidate in names:
                        return replace(candidate) + rest
            return value
        if isinstance(value, Mapping):
            fields = dict(cast("Mapping[str, Any]", value))
            for key in ("model", "path"):
                if key in fields:
                    fields[key] = reference(fields[key])
            return fields
        return value

    def models(container: Any) -> Any:
        """Replace in what holds models, slices, sources or modules."""
        if isinstance(container, list):
            return [models(item) for item in cast("list[Any]", container)]
        if not isinstance(container, Mapping):
            return reference(container)
        fields = dict(cast("Mapping[str, Any]", container))
        for key, value in fields.items():
            if key in ("base_model", "model", "tokenizer_source"):
                fields[key] = reference(value)
            elif key in ("models", "slices", "sources"):
                fields[key] = models(value)
            elif key == "modules" and isinstance(value, Mapping):
                fields[key] = {name: models(part) for name, part in cast("Mapping[str, Any]", value).items()}
            elif key == "tokenizer" and isinstance(value, Mapping):
                fields[key] = _replace_in_tokenizer(cast("Mapping[str, Any]", value), reference)
        return fields

    return models(document)


def _replace_in_tokenizer(options: Mapping[str, Any], reference: Callable[[Any], Any]) -> dict[str, Any]:
    fields = dict(options)
    if "source" in fields:
        fields["source"] = reference(fields["source"])
    tokens = fields.get("tokens")
    if isinstance(tokens, Mapping):
        entries = cast("Mapping[str, Any]", tokens)
        fields["tokens"] = {
            token: {**entry, "source": reference(entry["source"])}
            if isinstance(entry, Mapping) and "source" in entry
            else entry
            for token, entry in entries.items()
        }
    return fields
