"""Strict YAML parsing: mappings without duplicate keys, with limits on size, depth and aliases.

PyYAML silently keeps the last of two equal keys and expands aliases without a limit. Both are checked on the node
graph, before values are built. Messages do not quote the text, because a recipe may contain credentials.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..errors import RecipeError

MAX_TEXT_BYTES = 16 * 2**20  # a recipe of 1000 experts is about 100 kB
MAX_VALUES = 2_000_000  # after expanding aliases, against "billion laughs" documents
MAX_DEPTH = 60

_OTHER_BASE = re.compile(r"[-+]?(0_*[0-7][0-7_]*$|[0-9_]+:)")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is installed


def parse_yaml_mapping(text: str, origin: str) -> dict[str, Any]:
    """Return the mapping of a YAML text of one document.

    Parameters
    ----------
    text, origin : as for `parse_yaml_documents`

    Raises
    ------
    RecipeError : as `parse_yaml_documents`, or a second document
    """
    documents = parse_yaml_documents(text, origin)
    if len(documents) > 1:
        raise RecipeError(
            f"{origin}: has another document after the first; only `eigenmerge merge` and `eigenmerge plan` take"
            " recipes of several documents"
        )
    return documents[0]


def parse_yaml_documents(text: str, origin: str) -> list[dict[str, Any]]:
    """Return the mappings of the documents of a YAML text, which `---` separates; empty documents are left out.

    Parameters
    ----------
    text : str
    origin : str
        Where the text comes from, for error messages: a path, or "recipe".

    Raises
    ------
    RecipeError : not YAML, not a mapping, a duplicate key, too large, too deep, or aliases that expand too far
    """
    if len(text) > MAX_TEXT_BYTES:
        raise RecipeError(f"{origin}: {len(text)} characters long; a recipe has at most {MAX_TEXT_BYTES}")
    try:
        documents = _load_mappings(text, origin)
    except RecipeError:  # also a ValueError, which is caught below
        raise
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: is not valid YAML: {_describe(error)}") from None
    except RecursionError:
        raise RecipeError(f"{origin}: is nested too deeply; at most {MAX_DEPTH} levels") from None
    except (ValueError, OverflowError, TypeError) as error:  # e.g. a timestamp of month 13, an unhashable key
        raise RecipeError(f"{origin}: contains a value that YAML cannot build ({type(error).__name__})") from None
    for key in (key for document in documents for key in document):
        if not isinstance(key, str):
            raise RecipeError(f"{origin}: key {key!r} is of type {type(key).__name__}; expected a string")
    return documents


def _load_mappings(text: str, origin: str) -> list[dict[Any, Any]]:
    loader = _Loader(text)
    documents: list[dict[Any, Any]] = []
    found = "empty"
    try:
        while loader.check_node():
            node: yaml.Node = loader.get_node()
            if isinstance(node, yaml.ScalarNode) and not node.value:  # a `---` at the end or twice
                continue
            if not isinstance(node, yaml.MappingNode):
                found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
                documents.clear()
                break
            _check_nodes(node, origin)
            documents.append(loader.construct_document(node))
    finally:
        loader.dispose()
    if not documents:
        raise RecipeError(f"{origin}: is {found}; expected a YAML mapping with merge_method, base_model and models")
    return documents


def _check_nodes(root: yaml.Node, origin: str) -> None:
    """Check for duplicate keys, depth and number of values after alias expansion; each node is visited once."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def count_values(node: yaml.Node, path: str, depth: int) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        if key in open_nodes:
            raise RecipeError(f"{origin}: {path or 'the document'} contains itself through a YAML alias")
        if depth > MAX_DEPTH:
            raise RecipeError(f"{origin}: is nested too deeply; at most {MAX_DEPTH} levels")
        open_nodes.add(key)
        total = 1
        if isinstance(node, yaml.ScalarNode):
            _check_number(node, f"{origin}: {path}")
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key_node, value_node in node.value:
                name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
                inner = f"{path}.{name}" if path else name
                if name and name != "<<" and name in seen:
                    line = key_node.start_mark.line + 1
                    raise RecipeError(
                        f"{origin}: duplicate key {inner!r} (lines {seen[name]} and {line}); keep one of them"
                    )
                seen[name] = key_node.start_mark.line + 1
                total += count_values(key_node, inner, depth + 1) + count_values(value_node, inner, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                total += count_values(item, f"{path}[{index}]", depth + 1)
        open_nodes.discard(key)
        if total > MAX_VALUES:
            raise RecipeError(f"{origin}: {path or 'the document'} expands to more than {MAX_VALUES} values")
        sizes[key] = total
        return total

    count_values(root, "", 0)


def _check_number(node: yaml.ScalarNode, place: str) -> None:
    """Refuse a number that YAML 1.1 reads to the base 60 (1:30 is 90) or 8 (010 is 8)."""
    is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if is_number and _OTHER_BASE.match(node.value):
        raise RecipeError(
            f"{place}: YAML reads a number with a colon to base 60 and one with a leading 0 to base 8; write a decimal"
            " number, or text in quotes"
        )


def _describe(error: yaml.YAMLError) -> str:
    """Return line, column and problem, without the excerpt of the text that PyYAML adds."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read")
    position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return position + " ".join(problem.split())
