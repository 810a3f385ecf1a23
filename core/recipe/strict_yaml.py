"""YAML text to plain data, strictly: one mapping, no key twice, bounded in size, depth and aliases.

PyYAML keeps the last of two equal keys silently and expands aliases without a bound, so both are checked here on the
node graph, before anything is built from it. No message quotes the text: a recipe may hold credentials.
"""

from __future__ import annotations

from typing import Any

import yaml

from ..errors import RecipeError

MAX_TEXT_BYTES = 16 * 2**20  # a recipe of 1000 experts is about 100 kB
MAX_VALUES = 2_000_000  # after expanding aliases; stops "billion laughs"
MAX_DEPTH = 60

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times quicker where libyaml is compiled in


def parse_yaml_mapping(text: str, origin: str) -> dict[str, Any]:
    """The mapping that a YAML document holds.

    Parameters
    ----------
    text : str
    origin : str
        Where the text comes from, for messages: a path, or "the recipe".

    Raises
    ------
    RecipeError : not YAML, not a mapping, a key twice, too large, too deep, or aliases that expand without end
    """
    if len(text) > MAX_TEXT_BYTES:
        raise RecipeError(f"{origin}: {len(text)} characters long; a recipe has at most {MAX_TEXT_BYTES}")
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise RecipeError(f"{origin}: is empty; expected a YAML mapping with merge_method, base_model and models")
        if not isinstance(node, yaml.MappingNode):
            kind = {"scalar": "a single value", "sequence": "a list"}.get(node.id, node.id)
            raise RecipeError(f"{origin}: is {kind}; expected a YAML mapping with merge_method, base_model and models")
        _check_nodes(node, origin)
        loader = _Loader("")
        try:
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except RecipeError:  # a ValueError too: not to be caught below
        raise
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: is not valid YAML: {_describe(error)}") from None
    except RecursionError:
        raise RecipeError(f"{origin}: is nested too deeply; at most {MAX_DEPTH} levels") from None
    except (ValueError, OverflowError, TypeError) as error:  # e.g. a timestamp of month 13, an unhashable key
        raise RecipeError(f"{origin}: holds a value that YAML cannot build ({type(error).__name__})") from None
    for key in data:
        if not isinstance(key, str):
            raise RecipeError(f"{origin}: key {key!r} is a {type(key).__name__}; keys are words")
    return data


def _check_nodes(root: yaml.Node, origin: str) -> None:
    """Duplicate keys, depth and the number of values after alias expansion, each node visited once."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, place: str, depth: int) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        if key in open_nodes:
            raise RecipeError(f"{origin}: {place or 'the document'} contains itself through a YAML alias")
        if depth > MAX_DEPTH:
            raise RecipeError(f"{origin}: is nested too deeply; at most {MAX_DEPTH} levels")
        open_nodes.add(key)
        total = 1
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key_node, value_node in node.value:
                name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
                inner = f"{place}.{name}" if place else name
                if name and name != "<<" and name in seen:
                    line = key_node.start_mark.line + 1
                    raise RecipeError(
                        f"{origin}: key {inner!r} stands twice (lines {seen[name]} and {line}); keep one of them"
                    )
                seen[name] = key_node.start_mark.line + 1
                total += size(key_node, inner, depth + 1) + size(value_node, inner, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                total += size(item, f"{place}[{index}]", depth + 1)
        open_nodes.discard(key)
        if total > MAX_VALUES:
            raise RecipeError(f"{origin}: {place or 'the document'} expands to more than {MAX_VALUES} values")
        sizes[key] = total
        return total

    size(root, "", 0)


def _describe(error: yaml.YAMLError) -> str:
    """Line, column and problem, without the snippet of text that PyYAML adds."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read")
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return place + " ".join(problem.split())
