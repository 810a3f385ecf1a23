"""Match the patterns of rules and the filters of parameters against tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate

from ...errors import RecipeError, suggestion
from ...recipe.parts import Rule
from ...recipe.precedence import all_scopes
from ...recipe.recipe import Recipe

# mergekit's own examples filter for these weights, which a model with tied embeddings does not store.
_TIED_FILTERS = ("lm_head", "embed_tokens", "model.embed_tokens")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the compiled form of re:REGEX, searched in the name, or of a glob, which matches the whole name."""
    if pattern.startswith("re:"):
        return re.compile(pattern[3:])
    return re.compile(r"\A" + translate(pattern))


def match_rule(index: int, rule: Rule, names: Sequence[str]) -> frozenset[str]:
    """Return the tensor names that the patterns of `rules[index]` match.

    Raises
    ------
    RecipeError : a pattern matches no name; suggests one that does
    """
    found: set[str] = set()
    for pattern in rule.patterns:
        compiled = compile_pattern(pattern)
        matched = [name for name in names if compiled.search(name)]
        if not matched:
            raise RecipeError(f"rules[{index}].match: {pattern!r} matches no tensor{_hint(pattern, names)}")
        found.update(matched)
    return frozenset(found)


def _hint(pattern: str, names: Sequence[str]) -> str:
    """Return a wider glob that matches, a similar part of a name, or an example of a name."""
    if not pattern.startswith("re:"):
        core = pattern.strip("*")
        for wider in (f"{core}.*", f"*{core}*"):
            compiled = compile_pattern(wider)
            count = sum(bool(compiled.search(name)) for name in names)
            if core and count and wider != pattern:
                return f"; a pattern covers the whole name: {wider!r} matches {count}"
    last_part = pattern.removeprefix("re:").strip("*.").rpartition(".")[2]
    similar = suggestion(last_part, _name_parts(names))
    return similar if similar.startswith("; did you mean") else f"; names look like {names[len(names) // 2]}"


def check_filters(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Check that every `filter` of the recipe occurs in a tensor name.

    Returns
    -------
    list of str : a warning per filter for a weight that is tied to another and therefore not stored

    Raises
    ------
    RecipeError : a filter occurs in no tensor name; suggests the nearest part of a name
    """
    warnings: list[str] = []
    checked: set[str] = set()
    for scope in all_scopes(recipe):
        for name, setting in scope.settings.items():
            for case in setting:
                if case.filter is None or case.filter in checked:
                    continue
                checked.add(case.filter)
                if any(case.filter in tensor_name for tensor_name in names):
                    continue
                message = f"{scope.place}.{name}: filter {case.filter!r} is in no tensor name"
                if case.filter.removesuffix(".weight") in _TIED_FILTERS:
                    warnings.append(f"{message}: the weight is tied to another and not stored")
                else:
                    raise RecipeError(message + suggestion(case.filter, _name_parts(names)))
    return warnings


def _name_parts(names: Iterable[str]) -> set[str]:
    return {part for name in names for part in name.split(".") if not part.isdigit()}
