"""The tensors of the output and their sources: one to one for `models`, with renumbered layers for `slices`.

A `Slot` is one output tensor with its name in each source, the scopes of its parameters, and the position t at which
gradients are evaluated. As in mergekit, gradients run over the layers of a slice (for `models`: of the whole model);
tensors before and after the layers come from the first and the last slice, at t = 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from ...errors import CheckpointError, RecipeError
from ...recipe.precedence import Scope
from ..names import gradient_position, layer_of, natural_key, stack_depths, with_layer
from .layer_config import DEPTH_KEYS, config_of_layers

_LANGUAGE_PART = re.compile(r"text|language|llm")


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a group.

    expert : index into the experts' listings
    own : the scope of this model's own parameters
    first_layer : the first layer of a slice's source; None for `models`
    """

    expert: int
    is_base: bool
    own: Scope | None
    first_layer: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Models that are merged together.

    scopes : shared by all members, from the highest to the lowest precedence
    base_first_layer : the layer of the base that corresponds to the slice's first layer; None without a base
    base : reference of the base: the recipe's, or that of the slice
    """

    members: tuple[Member, ...]
    scopes: tuple[Scope | None, ...]
    base_first_layer: int | None = None
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """One output tensor.

    template : the reference's tensor that gives shape, dtype and kind; also the base's tensor, where there is a base
    t : position at which gradients are evaluated, 0 to 1
    offset : layer within the slice; None outside of slices and of layers
    """

    name: str
    template: str
    group: Group
    t: float
    offset: int | None = None

    def source_name(self, member: Member) -> str:
        """Return the name of the member's tensor, by the reference's naming scheme."""
        if self.offset is None or member.first_layer is None:
            return self.template
        return with_layer(self.template, member.first_layer + self.offset)


@dataclass(frozen=True, slots=True)
class OutputSlots:
    """All slots in the order of the output, and the keys of config.json that change."""

    slots: tuple[Slot, ...]
    config_changes: Mapping[str, object] = field(default_factory=dict[str, object])


def join_slots(parts: Sequence[OutputSlots]) -> OutputSlots:
    """Return the slots of several modules in the order of the output."""
    if len(parts) == 1:
        return parts[0]
    slots = sorted((slot for part in parts for slot in part.slots), key=lambda slot: natural_key(slot.name))
    return OutputSlots(tuple(slots), {key: value for part in parts for key, value in part.config_changes.items()})


def build_model_slots(names: Sequence[str], group: Group) -> OutputSlots:
    """Return one slot per tensor of the reference; gradients run over each stack of layers."""
    depths = stack_depths(names)
    ordered = sorted(names, key=natural_key)
    return OutputSlots(tuple(Slot(name, name, group, gradient_position(name, depths)) for name in ordered))


def build_slice_slots(
    names: Sequence[str],
    groups: Sequence[Group],
    lengths: Sequence[int],
    config: Mapping[str, object] | None,
) -> OutputSlots:
    """Return the slots of an output whose layers are those of the slices, one slice after another.

    Parameters
    ----------
    names : tensor names of the reference
    groups, lengths : one per slice; the lengths in layers
    config : the reference's config.json, whose number of layers changes

    Raises
    ------
    RecipeError : the model does not have exactly one stack of layers, or config.json cannot describe their new order
    CheckpointError : config.json does not state the number of layers
    """
    depths = stack_depths(names)
    if len(depths) != 1:
        found = ", ".join(sorted(depths)) or "none"
        raise RecipeError(f"slices: need a model with one stack of layers; found {found}. Use models and rules instead")
    stack, depth = next(iter(depths.items()))
    by_layer: dict[int, list[str]] = {}
    outside: list[str] = []
    for name in sorted(names, key=natural_key):
        layer = layer_of(name)
        if layer is None:
            outside.append(name)
        else:
            by_layer.setdefault(layer[1], []).append(name)
    # Tensors before the layers come from the models of the first slice, tensors after them from those of the last.
    slots = [Slot(name, name, groups[0] if _precedes_layers(name) else groups[-1], 0.0) for name in outside]
    origins: list[int] = []  # the reference's layer for each output layer
    for group, length in zip(groups, lengths, strict=True):
        first = group.base_first_layer if group.base_first_layer is not None else group.members[0].first_layer
        assert first is not None
        for offset in range(length):
            t = offset / (length - 1) if length > 1 else 1.0
            origin = min(first + offset, depth - 1)  # layers beyond the reference's depth are named like its last layer
            for template in by_layer.get(origin, ()):
                slots.append(Slot(with_layer(template, len(origins)), template, group, t, offset))
            origins.append(origin)
    ordered = tuple(sorted(slots, key=lambda slot: natural_key(slot.name)))
    changes = _config_changes(config, stack, depth, origins) if origins != list(range(depth)) else {}
    return OutputSlots(ordered, changes)


def _config_changes(
    config: Mapping[str, object] | None, stack: str, depth: int, origins: Sequence[int]
) -> dict[str, object]:
    """Return the entries of config.json that change, for the model and for its language model (`text_config`)."""
    if config is None:
        return {}
    keys = [key for key in DEPTH_KEYS if config.get(key) == depth]
    part = _language_part(config, depth)
    if not keys and part is None:
        raise CheckpointError(
            f"slices: none of {', '.join(DEPTH_KEYS)} in config.json is {depth}, the number of layers of {stack};"
            " correct config.json, so that the output's number of layers can be set"
        )
    changes: dict[str, object] = {}
    if keys:
        changes = {**config_of_layers(config, depth, origins), keys[0]: len(origins)}
    if part is not None:
        inner = cast("Mapping[str, object]", config[part])
        changes[part] = {**inner, **_config_changes(inner, stack, depth, origins)}
    return changes


def _language_part(config: Mapping[str, object], depth: int) -> str | None:
    """Return the key of the part of config.json that describes a language model with this number of layers, if any."""
    for name, part in config.items():
        if isinstance(part, Mapping) and _LANGUAGE_PART.search(name):
            inner = cast("Mapping[str, object]", part)
            if depth in (inner.get(key) for key in DEPTH_KEYS):
                return name
    return None


def _precedes_layers(name: str) -> bool:
    """Return whether a tensor outside of the layers precedes them: embeddings do, final norm and head do not."""
    return any(word in name for word in ("embed", "wte", "wpe"))


def check_layer_range(place: str, layers: tuple[int, int], depth: int, model: str) -> None:
    """Check that a model has the layers of a range.

    Raises
    ------
    RecipeError : names the place in the recipe, the range and the number of layers
    """
    first, stop = layers
    if not 0 <= first < stop <= depth:
        raise RecipeError(f"{place}.layer_range: is [{first}, {stop}], {model} has layers [0, {depth}]")
