"""Express the LoRA factors of a mixture's experts in the form of the base: of single experts, or of parts of a stack.

A delta B A of a matrix (out, in) has its rows in B and its columns in A. A part of it is a part of B or A, and the
delta of the transposed matrix is A^T B^T, so both directions are exact, and the rank does not grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ....errors import CheckpointError
from ....listing import LoraPart, LoraSource, StackedLora
from ....views import select
from ...names import layer_of
from .align import own_name, rename_rest, templates
from .layout import Layout
from .mixtures import Mixture, Role, find_mixtures, is_router_name
from .pairing import pair_mixtures
from .stacks import Stack

Lora = LoraSource | StackedLora


def align_lora(reference: Layout, lora: Mapping[str, Lora], model: str) -> Mapping[str, Lora]:
    """Return the factors by the names of weights in the base's form; these have the adapter's prefix.

    An adapter may adapt some experts only. The others keep the base's matrices.

    Raises
    ------
    CheckpointError : the adapter has an expert that the base does not have
    """
    if not reference.mixtures:
        return lora
    shapes = {name: factors.shape for name, factors in lora.items()}
    changed: dict[str, Lora] = {}
    replaced: set[str] = set()
    for wanted, found in pair_mixtures(reference.mixtures, find_mixtures(shapes, reference.config)):
        if templates(found) <= templates(wanted):
            continue
        matrices = _matrices(found, lora)
        excess = next((expert for _, expert in matrices if expert >= wanted.count), None)
        if excess is not None:
            raise CheckpointError(
                f"{model}: adapts expert {excess} of {found.owner}, the base has {wanted.count} experts in"
                f" {wanted.owner}; set base_model to the model that it was trained on"
            )
        replaced |= found.names
        changed |= _in_form_of(reference, wanted, found, matrices)
        for name, new_name in rename_rest(reference, wanted, found, shapes).items():
            replaced.add(name)
            changed[new_name] = lora[name]
    for name, new_name in _routers_of_other_names(reference, [name for name in lora if name not in replaced], shapes):
        replaced.add(name)
        changed[new_name] = lora[name]
    if not changed:
        return lora
    return {**{name: factors for name, factors in lora.items() if name not in replaced}, **changed}


def _routers_of_other_names(
    reference: Layout, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, str]]:
    """Yield adapted routers whose layer has one mixture and no tensor of that name, with the name of its router.

    An adapter has the names of the modules in memory: `mlp.gate` where Mixtral is stored with `block_sparse_moe.gate`.
    """
    known = {_in_layer(name) for name in reference.shapes}
    by_layer: dict[tuple[str, int] | None, list[Mixture]] = {}
    for mixture in reference.mixtures:
        by_layer.setdefault(_in_layer(f"{mixture.owner}.")[0], []).append(mixture)
    for name in names:
        layer, rest = _in_layer(name)
        mixtures = by_layer.get(layer, [])
        if (
            layer is None
            or len(mixtures) != 1
            or (layer, rest) in known
            or ".experts." in name
            or not is_router_name(rest)
        ):
            continue
        routers = [one for one in mixtures[0].routers if reference.shapes[one] == shapes[name]]
        if len(routers) == 1:
            yield name, name[: len(name) - len(rest)] + _in_layer(routers[0])[1]


def _in_layer(name: str) -> tuple[tuple[str, int] | None, str]:
    """Return the last word of the stack of layers with the layer's number, and the name within the layer."""
    layer = layer_of(name)
    if layer is None:
        return None, name
    return (layer[0].rpartition(".")[2], layer[1]), name[len(f"{layer[0]}.{layer[1]}.") :]


def _matrices(found: Mixture, lora: Mapping[str, Lora]) -> dict[tuple[Role, int], LoraSource]:
    """Return the factors of each adapted projection of each expert, of a delta (out, in)."""
    matrices: dict[tuple[Role, int], LoraSource] = {}
    for key, name in found.split.items():
        factors = lora[name]
        assert isinstance(factors, LoraSource), f"{name} is one matrix"
        matrices[key] = replace(factors, fan_in_fan_out=False)  # one expert's layer is stored (out, in)
    for role, (name, form) in found.stacked.items():
        factors = lora[name]
        assert isinstance(factors, StackedLora), f"{name} is a stack"
        for part in factors.parts:
            # of a matrix stored (in, out) the factors give the transposed delta, as `fan_in_fan_out` says
            matrix = replace(part.lora, fan_in_fan_out=False)
            if role != "gate_up":
                matrices[role, part.index] = matrix
                continue
            rows = matrix.up.shape[0]
            for half, (_, start, stop, step) in zip(("gate", "up"), form.parts(rows), strict=True):
                matrices[half, part.index] = replace(matrix, up=select(matrix.up, 0, start, stop, step))
    return matrices


def _in_form_of(
    reference: Layout, wanted: Mixture, found: Mixture, matrices: Mapping[tuple[Role, int], LoraSource]
) -> dict[str, Lora]:
    built: dict[str, Lora] = {}
    for key, name in wanted.split.items():
        if key in matrices:
            built[own_name(wanted, found, name)] = matrices[key]
    for role, (name, form) in wanted.stacked.items():
        shape = reference.shapes[name]
        parts = _parts(role, form, shape, matrices)
        if parts:
            built[own_name(wanted, found, name)] = StackedLora(parts, shape)
    return built


def _parts(
    role: Role, form: Stack, shape: tuple[int, ...], matrices: Mapping[tuple[Role, int], LoraSource]
) -> tuple[LoraPart, ...]:
    """Return the parts of a stack that factors change."""
    axis = 1 if form.in_out else 0
    halves: tuple[Role, ...] = ("gate", "up") if role == "gate_up" else (role,)
    found: list[LoraPart] = []
    for expert in range(form.count):
        for half, (_, start, stop, step) in zip(halves, form.parts(shape[1 + axis]), strict=True):
            factors = matrices.get((half, expert))
            if factors is not None:
                oriented = replace(factors, fan_in_fan_out=form.in_out)
                found.append(LoraPart(oriented, expert, start, stop, axis, step))
    return tuple(found)
