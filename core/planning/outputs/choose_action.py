"""Choose which tensors are merged, averaged or copied: the recipe's rules first, then the kind of tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...numerics.method import AnyMethod, DirectMethod
from ...numerics.registry import get_method
from ...recipe.parts import Rule
from ...recipe.recipe import Recipe
from ..names import Kind
from ..plan import Action
from .name_patterns import match_rule

# The groups of settings of a rule. For each, the first matching rule that sets it wins.
_Topic = Literal["action", "conv", "qkv", "orientation"]
_TOPICS: tuple[_Topic, ...] = ("action", "conv", "qkv", "orientation")


@dataclass(frozen=True, slots=True)
class ActionChoice:
    """What is done with one output tensor.

    rule : index of the rule whose parameters apply, or None
    split_qkv : a spectral method decomposes q, k and v separately
    orientation : how a rule says that the matrix is stored, "in_out" or "out_in"; None where no rule does
    calibrated : SVC follows a direct method: on the tensors that a spectral method decomposes
    """

    action: Action
    method: AnyMethod | None
    reason: str
    rule: int | None = None
    split_qkv: bool = False
    orientation: str | None = None
    calibrated: bool = False


class ActionChooser:
    """Chooses the action of each tensor. Rules are matched against all names once, at construction.

    method : the recipe's merge_method
    warnings : one per rule that has no effect

    Raises
    ------
    RecipeError : a pattern matches no tensor; suggests one that does
    """

    def __init__(self, recipe: Recipe, names: Sequence[str]) -> None:
        self._recipe = recipe
        self.method = get_method(recipe.merge_method)
        self._rule_methods = [get_method(rule.method) if rule.method else self.method for rule in recipe.rules]
        self._matched = [match_rule(index, rule, names) for index, rule in enumerate(recipe.rules)]
        self.warnings = [
            f"rules[{index}] ({', '.join(rule.patterns)}) decides nothing: earlier rules take all it matches"
            for index, rule in enumerate(recipe.rules)
            if self._is_shadowed(index)
        ]

    def _is_shadowed(self, index: int) -> bool:
        """Return whether earlier rules set everything that this rule sets, on all tensors that it matches."""
        rule = self._recipe.rules[index]
        earlier = [
            self._matched[other]
            for other in range(index)
            if all(_sets(self._recipe.rules[other], topic) or not _sets(rule, topic) for topic in _TOPICS)
        ]
        return bool(earlier) and self._matched[index] <= frozenset[str]().union(*earlier)

    def choose(self, name: str, kind: Kind) -> ActionChoice:
        """Return the action of a tensor. Keys of the recipe apply where no rule does."""
        rule: Rule | None = None
        index: int | None = None
        conv: str | None = None
        qkv: str | None = None
        orientation: str | None = None
        for number, candidate in enumerate(self._recipe.rules):
            if name not in self._matched[number]:
                continue
            if rule is None and _sets(candidate, "action"):
                rule, index = candidate, number
            conv = conv or candidate.conv
            qkv = qkv or candidate.qkv
            orientation = orientation or candidate.orientation
        if kind == "empty":
            return ActionChoice("copy", None, "no elements")
        if rule is not None and rule.action == "keep_base":
            return ActionChoice("copy", None, f"rule {_show_patterns(rule)}: base kept")
        if kind == "buffer":
            return ActionChoice("copy", None, "buffer: base kept")
        method = self._rule_methods[index] if index is not None else self.method
        rule_reason = f"rule {_show_patterns(rule)}" if rule is not None else ""
        if rule is not None and rule.action == "mean":
            return ActionChoice("mean", method, f"{rule_reason}: mean delta", index)
        forced = rule is not None and (rule.action == "merge" or rule.method is not None)
        conv, qkv = conv or self._recipe.conv, qkv or self._recipe.qkv
        if isinstance(method, DirectMethod):
            direct = ActionChoice("merge", method, rule_reason or f"{method.name} merges every tensor", index)
            if not self._calibrates(method):
                return direct
            spectral = self._choose_spectral(kind, method, "", index, forced=False, conv=conv, qkv=qkv)
            if spectral.action != "merge":
                return direct
            return replace(direct, calibrated=True, split_qkv=spectral.split_qkv, orientation=orientation)
        choice = self._choose_spectral(kind, method, rule_reason, index, forced=forced, conv=conv, qkv=qkv)
        return replace(choice, orientation=orientation)

    def _calibrates(self, method: DirectMethod[Any, Any]) -> bool:
        """Return whether SVC follows a direct method: not where the result is one model, to which nothing is added."""
        calibration = self._recipe.calibration
        return calibration is not None and calibration.svc is not None and method.max_experts != 1

    def _choose_spectral(
        self, kind: Kind, method: AnyMethod, rule_reason: str, rule: int | None, *, forced: bool, conv: str, qkv: str
    ) -> ActionChoice:
        """Return the action under a spectral method, which merges matrices only.

        Parameters
        ----------
        forced : bool
            A rule demands the merge, also of embeddings and lm_head.
        """
        if kind in ("matrix", "expert_stack"):
            reason = "2-D weight" if kind == "matrix" else "one matrix for each expert of the mixture"
            return ActionChoice("merge", method, rule_reason or reason, rule, split_qkv=qkv == "split")
        if kind in ("router", "router_vector"):
            # The merged experts replace the base's one by one, so the base's router still chooses the right ones.
            if not forced:
                return ActionChoice("copy", None, "router: base kept")
            if kind == "router":
                return ActionChoice("merge", method, rule_reason, rule)
            return _mean_or_base(self._recipe.vectors, method, "1-D", rule)
        if kind == "conv":
            if conv == "matrix":
                return ActionChoice("merge", method, "convolution as a matrix (out, in * kernel)", rule)
            return _mean_or_base(conv, method, "convolution", rule)
        if kind == "vector":
            return _mean_or_base(self._recipe.vectors, method, "1-D", rule)
        treatment = self._recipe.embeddings if kind == "embedding" else self._recipe.lm_head
        if forced or treatment == "merge":
            return ActionChoice("merge", method, rule_reason or f"{kind}: merge", rule)
        return _mean_or_base(treatment, method, kind, rule)


def _sets(rule: Rule, topic: _Topic) -> bool:
    if topic == "action":
        return rule.action is not None or rule.method is not None or rule.parameters is not None
    return getattr(rule, topic) is not None


def _mean_or_base(treatment: str, method: AnyMethod, kind: str, rule: int | None) -> ActionChoice:
    if treatment == "base":
        return ActionChoice("copy", None, f"{kind}: base kept")
    return ActionChoice("mean", method, f"{kind}: mean delta", rule)


def _show_patterns(rule: Rule) -> str:
    return repr(rule.patterns[0]) if len(rule.patterns) == 1 else repr(list(rule.patterns))
