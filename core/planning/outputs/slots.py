"""The tensors of the output and where each comes from: one to one for `models`, renumbered layers for `slices`.

A `Slot` is one output tensor. It says under which name each source has it, which scopes of parameters hold, and the
place t at which gradients are read. mergekit's rules: gradients run over the layers of a slice (of the whole model for
`models`); what stands before and after the layers comes from the first and the last slice, at t = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import CheckpointError, RecipeError
from ...recipe.recipe import OutputSlice, Recipe
from ...recipe.scopes import Scope, scope
from ..names import gradient_position, layer_of, natural_key, stack_depths, with_layer

# Under which key config.json counts the layers of its one stack, by architecture.
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True, slots=True)
class Member:
    """One model that goes into a group: index into the listings of experts, and its parameters."""

    expert: int
    is_base: bool
    own: Scope | None
    first_layer: int | None = None  # slices: the source's first layer


@dataclass(frozen=True, slots=True)
class Group:
    """Models that are merged together with shared scopes, most specific first."""

    members: tuple[Member, ...]
    scopes: tuple[Scope | None, ...]
    base_first_layer: int | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Slot:
    """One output tensor.

    template : the reference's name of it (its shape, dtype and kind; the base's tensor where there is a base)
    """

    name: str
    template: str
    group: Group
    t: float
    offset: int | None = None  # layer within the slice; None outside of slices and layers

    def source_name(self, member: Member) -> str:
        """The member's name of it, in the reference's way of writing."""
        if self.offset is None or member.first_layer is None:
            return self.template
        return with_layer(self.template, member.first_layer + self.offset)


@dataclass(frozen=True, slots=True)
class OutputLayers:
    """All slots in the order of the output, and what changes in config.json."""

    slots: tuple[Slot, ...]
    config_changes: Mapping[str, object] = field(default_factory=dict)


def shared_scopes(recipe: Recipe, part: OutputSlice | None = None, index: int = 0) -> tuple[Scope | None, ...]:
    """slice > module > global."""
    module = recipe.module
    return (
        scope(f"slices[{index}].parameters", part.parameters) if part is not None else None,
        scope("modules.parameters", module.parameters) if module is not None else None,
        scope("parameters", recipe.parameters),
    )


def layers_of_models(names: Sequence[str], group: Group) -> OutputLayers:
    """The output has the reference's tensors; gradients run over each stack of layers."""
    depths = stack_depths(names)
    ordered = sorted(names, key=natural_key)
    return OutputLayers(tuple(Slot(name, name, group, gradient_position(name, depths)) for name in ordered))


def layers_of_slices(
    names: Sequence[str],
    groups: Sequence[Group],
    lengths: Sequence[int],
    config: Mapping[str, object] | None,
) -> OutputLayers:
    """The output's layers are those of the slices, one after the other.

    Parameters
    ----------
    names : the reference's tensor names
    groups, lengths : one per slice; number of layers of each
    config : the reference's config.json; its number of layers is corrected in the output

    Raises
    ------
    RecipeError : the model has no stack of layers, or several
    """
    depths = stack_depths(names)
    if len(depths) != 1:
        found = ", ".join(sorted(depths)) or "none"
        raise RecipeError(f"slices: need a model with one stack of layers; found {found}. Use models and rules instead")
    stack, depth = next(iter(depths.items()))
    by_layer: dict[int, list[str]] = {}
    outside: list[str] = []
    for name in sorted(names, key=natural_key):
        found = layer_of(name)
        if found is None:
            outside.append(name)
        else:
            by_layer.setdefault(found[1], []).append(name)
    # A tensor that sorts before the layers takes the first slice's models, one behind them the last's. What mergekit
    # reads from an architecture file is read off the kind of tensor here: embeddings come before, norm and head after.
    slots = [Slot(name, name, groups[0] if _precedes_layers(name) else groups[-1], 0.0) for name in outside]
    origins: list[int] = []  # the reference's layer behind each output layer
    for group, length in zip(groups, lengths, strict=True):
        first = group.base_first_layer if group.base_first_layer is not None else group.members[0].first_layer
        assert first is not None
        for offset in range(length):
            t = offset / (length - 1) if length > 1 else 1.0
            origin = min(
                first + offset, depth - 1
            )  # a deeper model's layers have the names of the reference's last one
            for template in by_layer.get(origin, ()):
                slots.append(Slot(with_layer(template, len(origins)), template, group, t, offset))
            origins.append(origin)
    changes: dict[str, object] = {}
    if config is not None:
        key = next((key for key in _DEPTH_KEYS if config.get(key) == depth), None)
        if key is None:
            raise CheckpointError(
                f"slices: config.json does not say {depth} layers for {stack} under {' or '.join(_DEPTH_KEYS)};"
                " the output's number of layers cannot be set"
            )
        changes[key] = len(origins)
        for name, value in config.items():
            if isinstance(value, list) and len(value) == depth:  # one entry for each layer, as layer_types
                changes[name] = [value[origin] for origin in origins]
    return OutputLayers(tuple(sorted(slots, key=lambda slot: natural_key(slot.name))), changes)


def _precedes_layers(name: str) -> bool:
    return any(word in name for word in ("embed", "wte", "wpe"))


def check_layer_range(place: str, layers: tuple[int, int], depth: int, model: str) -> None:
    """Refuse a range that the model does not have.

    Raises
    ------
    RecipeError : names the place, the range and the number of layers
    """
    first, stop = layers
    if not 0 <= first < stop <= depth:
        raise RecipeError(f"{place}.layer_range: is [{first}, {stop}], {model} has layers [0, {depth}]")
