"""What happens to each tensor: the recipe's rules first, then what its kind means under the method."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

from ...errors import RecipeError, suggestion
from ...numerics.method import AnyMethod, DirectMethod
from ...numerics.registry import get_method
from ...recipe.recipe import Recipe, Rule
from ...recipe.settings import parse_setting
from ..names import Kind
from ..plan import Action


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one tensor.

    rule : index of the rule whose parameters hold, None for none
    conv, qkv : how a spectral method sees the tensor
    """

    action: Action
    method: AnyMethod | None
    reason: str
    rule: int | None = None
    split_qkv: bool = False


class RuleBook:
    """The recipe's rules, matched against all names at the start.

    Raises
    ------
    RecipeError : a pattern that matches no tensor; suggests one that does
    """

    def __init__(self, recipe: Recipe, names: Sequence[str]) -> None:
        self._recipe = recipe
        self.method = get_method(recipe.merge_method)
        self._rule_methods = [get_method(rule.method) if rule.method else self.method for rule in recipe.rules]
        self._matched = [_matches(index, rule, names) for index, rule in enumerate(recipe.rules)]
        self.warnings = [
            f"rules[{index}] ({', '.join(rule.patterns)}) decides nothing: earlier rules take all it matches"
            for index, rule in enumerate(recipe.rules)
            if self._is_shadowed(index)
        ]

    def _is_shadowed(self, index: int) -> bool:
        rule = self._recipe.rules[index]
        earlier = [
            self._matched[other]
            for other in range(index)
            if all(_topic(self._recipe.rules[other], topic) or not _topic(rule, topic) for topic in _TOPICS)
        ]
        return bool(earlier) and self._matched[index] <= set().union(*earlier)

    def decide(self, name: str, kind: Kind) -> Decision:
        """The first rule that says something about a point decides it; what no rule says, the recipe's keys say."""
        treatment: Rule | None = None
        rule_index: int | None = None
        conv: str | None = None
        qkv: str | None = None
        for index, rule in enumerate(self._recipe.rules):
            if name not in self._matched[index]:
                continue
            if treatment is None and _topic(rule, "treatment"):
                treatment, rule_index = rule, index
            conv = conv or rule.conv
            qkv = qkv or rule.qkv
        if kind == "empty":
            return Decision("copy", None, "no elements")
        if treatment is not None and treatment.action == "keep_base":
            return Decision("copy", None, f"rule {_shown(treatment)}: base kept")
        if kind == "buffer":
            return Decision("copy", None, "buffer: base kept")
        method = self._rule_methods[rule_index] if rule_index is not None else self.method
        because = f"rule {_shown(treatment)}" if treatment is not None else ""
        if treatment is not None and treatment.action == "mean":
            return Decision("mean", method, f"{because}: mean delta", rule_index)
        if isinstance(method, DirectMethod):
            return Decision("merge", method, because or f"{method.name} merges every tensor", rule_index)
        forced = treatment is not None and (treatment.action == "merge" or treatment.method is not None)
        conv, qkv = conv or self._recipe.conv, qkv or self._recipe.qkv
        return self._spectral(kind, method, because, rule_index, forced=forced, conv=conv, qkv=qkv)

    def _spectral(
        self, kind: Kind, method: AnyMethod, because: str, rule: int | None, *, forced: bool, conv: str, qkv: str
    ) -> Decision:
        if kind in ("matrix", "expert_stack"):
            what = "2-D weight" if kind == "matrix" else "one matrix for each expert of the mixture"
            return Decision("merge", method, because or what, rule, split_qkv=qkv == "split")
        if kind == "conv":
            if conv == "matrix":
                return Decision("merge", method, "convolution as a matrix (out, in * kernel)", rule)
            return _mean_or_base(conv, method, "convolution", rule)
        if kind == "vector":
            return _mean_or_base(self._recipe.vectors, method, "1-D", rule)
        treatment = self._recipe.embeddings if kind == "embedding" else self._recipe.lm_head
        if forced or treatment == "merge":
            return Decision("merge", method, because or f"{kind}: merge", rule)
        return _mean_or_base(treatment, method, kind, rule)


_TOPICS = ("treatment", "conv", "qkv")


def _topic(rule: Rule, topic: str) -> bool:
    if topic == "treatment":
        return rule.action is not None or rule.method is not None or rule.parameters is not None
    return getattr(rule, topic) is not None


def _mean_or_base(treatment: str, method: AnyMethod, what: str, rule: int | None) -> Decision:
    if treatment == "base":
        return Decision("copy", None, f"{what}: base kept")
    return Decision("mean", method, f"{what}: mean delta", rule)


def _shown(rule: Rule) -> str:
    return repr(rule.patterns[0]) if len(rule.patterns) == 1 else repr(list(rule.patterns))


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """re:REGEX is searched for in the name; anything else is a glob over the whole name."""
    if pattern.startswith("re:"):
        return re.compile(pattern[3:])
    return re.compile(r"\A" + translate(pattern))


def _matches(index: int, rule: Rule, names: Sequence[str]) -> frozenset[str]:
    found: set[str] = set()
    for pattern in rule.patterns:
        compiled = compile_pattern(pattern)
        matched = [name for name in names if compiled.search(name)]
        if not matched:
            raise RecipeError(f"rules[{index}].match: {pattern!r} matches no tensor{_hint(pattern, names)}")
        found.update(matched)
    return frozenset(found)


def _hint(pattern: str, names: Sequence[str]) -> str:
    if not pattern.startswith("re:"):
        core = pattern.strip("*")
        for wider in (f"{core}.*", f"*{core}*"):
            compiled = compile_pattern(wider)
            count = sum(bool(compiled.search(name)) for name in names)
            if core and count and wider != pattern:
                return f"; a pattern covers the whole name: {wider!r} matches {count}"
    word = pattern.removeprefix("re:").strip("*.")
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    near = suggestion(word.rpartition(".")[2], parts)
    return near if near.startswith("; did you mean") else f"; names look like {names[len(names) // 2]}"


def check_filters(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Every `filter` of the recipe against the names that it is searched in; returns warnings.

    A filter for a weight that is tied to another and therefore not stored (mergekit's own examples filter for lm_head)
    is a warning.

    Raises
    ------
    RecipeError : a filter that stands in no tensor name; suggests the nearest
    """
    warnings: list[str] = []
    checked: set[str] = set()
    for place, parameters in _scopes(recipe):
        for key, raw in (parameters or {}).items():
            for case in parse_setting(raw):
                if case.filter is None or case.filter in checked:
                    continue
                checked.add(case.filter)
                if any(case.filter in name for name in names):
                    continue
                where = f"{place}.{key}: filter {case.filter!r} is in no tensor name"
                if case.filter.removesuffix(".weight") in ("lm_head", "embed_tokens", "model.embed_tokens"):
                    warnings.append(f"{where}: the weight is tied to another and not stored")
                    continue
                parts = {part for name in names for part in name.split(".") if not part.isdigit()}
                raise RecipeError(f"{where}{suggestion(case.filter, parts)}")
    return warnings


def _scopes(recipe: Recipe) -> Iterable[tuple[str, Mapping[str, Any] | None]]:
    yield "parameters", recipe.parameters
    if recipe.module is not None:
        yield "modules.parameters", recipe.module.parameters
    for index, item in enumerate(recipe.input_models or ()):
        yield f"models[{index}].parameters", item.parameters
    for index, part in enumerate(recipe.output_slices or ()):
        yield f"slices[{index}].parameters", part.parameters
        for number, source in enumerate(part.sources):
            yield f"slices[{index}].sources[{number}].parameters", source.parameters
    for index, rule in enumerate(recipe.rules):
        yield f"rules[{index}].parameters", rule.parameters
