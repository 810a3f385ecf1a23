"""Which mixture of a checkpoint is which of the reference's: by layer, whatever the modules are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ...names import layer_of
from .mixtures import Mixture


def layer_prefix(owner: str) -> str:
    """Return the part of the names in a module that comes before the layer's own: "model.layers.0.", with the dot."""
    layer = layer_of(f"{owner}.")
    if layer is not None:
        return f"{layer[0]}.{layer[1]}."
    parent = owner.rpartition(".")[0]
    return f"{parent}." if parent else ""


def pair_mixtures(reference: Sequence[Mixture], own: Sequence[Mixture]) -> list[tuple[Mixture, Mixture]]:
    """Return (reference's mixture, checkpoint's mixture) pairs of the same layers.

    Stacks of layers correspond if their names end alike (encoder.layers, model.decoder.layers). In one layer, mixtures
    correspond by the name of their module, or else by their order where their number is the same.
    """
    by_stack, own_by_stack = _by_stack(reference), _by_stack(own)
    found: list[tuple[Mixture, Mixture]] = []
    for stack, own_stack in _pair_stacks(list(by_stack), list(own_by_stack)):
        for index, mixtures in by_stack[stack].items():
            found += _pair_in_layer(mixtures, own_by_stack[own_stack].get(index, []))
    return found


def _by_stack(mixtures: Sequence[Mixture]) -> dict[str, dict[int, list[Mixture]]]:
    """Return the mixtures by stack of layers and layer."""
    found: dict[str, dict[int, list[Mixture]]] = defaultdict(lambda: defaultdict(list))
    for mixture in mixtures:
        stack, index = layer_of(f"{mixture.owner}.") or ("", 0)
        found[stack][index].append(mixture)
    return found


def _pair_stacks(reference: list[str], own: list[str]) -> list[tuple[str, str]]:
    """Pair each stack of layers with at most one other, those with the most common last words first."""
    scored = [(_common_end(one, other), one, other) for one in reference for other in own]
    scored.sort(key=lambda item: -item[0])  # stable: equal scores in the order of the models
    found: dict[str, str] = {}
    for _, one, other in scored:
        if one not in found and other not in found.values():
            found[one] = other
    return list(found.items())


def _common_end(one: str, other: str) -> int:
    count = 0
    for left, right in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if left != right:
            break
        count += 1
    return count


def _pair_in_layer(reference: Sequence[Mixture], own: Sequence[Mixture]) -> list[tuple[Mixture, Mixture]]:
    by_name = {mixture.owner.rpartition(".")[2]: mixture for mixture in own}
    named = [(mixture, by_name.get(mixture.owner.rpartition(".")[2])) for mixture in reference]
    if len(by_name) == len(own) and all(found is not None for _, found in named):
        return [(mixture, found) for mixture, found in named if found is not None]
    return list(zip(reference, own, strict=True)) if len(reference) == len(own) else []
