"""Express the mixtures of a checkpoint in the form of the reference: its names, stacked or one tensor for each expert.

The same experts can be stored in several forms (mixtures.py). Each projection of each expert is one logical matrix,
(out, in). It is described as a view on what the checkpoint stores, and the tensors that the reference has are described
as views on these matrices. Nothing is read here, and reading a view reads only the bytes that it needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ....errors import CheckpointError
from ....formats.digest import hash_json
from ....listing import TensorSource
from ....views import concatenate, describe, reshape, select, select_index, stack, transpose
from .align_biases import align_biases
from .layout import Layout
from .mixtures import Mixture, Role, find_mixtures
from .pairing import layer_prefix, pair_mixtures
from .stacks import Stack

_DIGITS = re.compile(r"\d+")
_GATE_AND_UP: tuple[Role, ...] = ("gate", "up")


@dataclass(frozen=True, slots=True)
class AlignedTensors:
    """The tensors of a checkpoint with its mixtures in the reference's form.

    tensors : by name; those of mixtures have the checkpoint's prefix and the reference's names within the layer
    derived : for names that the checkpoint does not store so: what identifies the tensor within the checkpoint
    """

    tensors: Mapping[str, TensorSource]
    derived: Mapping[str, str] = field(default_factory=dict[str, str])


def align_tensors(
    reference: Layout, tensors: Mapping[str, TensorSource], config: Mapping[str, object] | None, model: str
) -> AlignedTensors:
    """Return the tensors with all mixtures in the reference's form.

    Parameters
    ----------
    config : config.json of the checkpoint
    model : name of the checkpoint, for errors

    Raises
    ------
    CheckpointError : a mixture in another form has another number of experts, or lacks some of their weights
    """
    if not reference.mixtures:
        return AlignedTensors(tensors)
    shapes = {name: source.shape for name, source in tensors.items()}
    own = find_mixtures(shapes, config or reference.config)
    changed: dict[str, TensorSource] = {}
    replaced: set[str] = set()
    for wanted, found in pair_mixtures(reference.mixtures, own):
        if templates(found) == templates(wanted) and _same_stacks(reference, wanted, found, shapes):
            continue
        if wanted.count != found.count:
            raise CheckpointError(
                f"{model}: {found.owner} has {found.count} experts, the base has {wanted.count} in {wanted.owner};"
                " give models of the same architecture"
            )
        replaced |= found.names
        changed |= _Builder(reference, tensors, wanted, found, model).tensors()
        biases, old_biases = align_biases(reference.shapes, tensors, wanted, found, model)
        changed |= {own_name(wanted, found, name): bias for name, bias in biases.items()}
        replaced |= {*old_biases}
        for name, new_name in rename_rest(reference, wanted, found, shapes).items():
            if name in old_biases:
                continue
            replaced.add(name)
            shape = reference.shapes.get(reference_name(wanted, found, new_name))
            is_transposed = shape is not None and tensors[name].shape == shape[::-1] != shape
            changed[new_name] = transpose(tensors[name]) if is_transposed else tensors[name]
    if not changed:
        return AlignedTensors(tensors)
    kept = {name: source for name, source in tensors.items() if name not in replaced}
    derived = {name: hash_json(describe(source)) for name, source in changed.items() if tensors.get(name) != source}
    return AlignedTensors({**kept, **changed}, derived)


def templates(mixture: Mixture) -> set[str]:
    """Return the names of the experts' weights within the layer, with the same number for every expert."""
    prefix = len(layer_prefix(mixture.owner))
    return {_DIGITS.sub("0", name[prefix:]) for name in mixture.names}


def reference_name(wanted: Mixture, found: Mixture, name: str) -> str:
    """Return the reference's name of an aligned tensor."""
    return layer_prefix(wanted.owner) + name[len(layer_prefix(found.owner)) :]


def own_name(wanted: Mixture, found: Mixture, name: str) -> str:
    """Return the name of a reference's tensor with the prefix of the checkpoint."""
    return layer_prefix(found.owner) + name[len(layer_prefix(wanted.owner)) :]


def rename_rest(
    reference: Layout, wanted: Mixture, found: Mixture, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Return the new names of the tensors beside the experts (router, shared experts), where these are different."""
    renamed: dict[str, str] = {}
    routers: dict[int, list[str]] = {}
    for name in wanted.routers:
        routers.setdefault(len(reference.shapes[name]), []).append(name)
    for ndim, names in routers.items():
        own = [name for name in found.routers if len(shapes[name]) == ndim]
        if len(own) == len(names) == 1:
            renamed[own[0]] = own_name(wanted, found, names[0])
    old, new = f"{found.owner}.", own_name(wanted, found, f"{wanted.owner}.")
    for name in shapes:
        if name.startswith(old) and name not in found.names and name not in renamed:
            renamed[name] = new + name[len(old) :]
    return {name: other for name, other in renamed.items() if name != other}


def _same_stacks(reference: Layout, wanted: Mixture, found: Mixture, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether the checkpoint divides its stacks as the reference does; they may be transposed."""
    if wanted.split or wanted.count != found.count:
        return True  # where sizes differ, the comparison of all tensors says so
    return all(
        shapes[own] == reference.shapes[name] and wanted.stack_of(name) == found.stack_of(own)
        for name in wanted.names
        for own in [own_name(wanted, found, name)]
    )


class _Builder:
    """Describes the reference's tensors of one mixture as views on a checkpoint's."""

    def __init__(
        self, reference: Layout, tensors: Mapping[str, TensorSource], wanted: Mixture, found: Mixture, model: str
    ) -> None:
        self._reference = reference
        self._tensors = tensors
        self._wanted = wanted
        self._found = found
        self._model = model

    def tensors(self) -> dict[str, TensorSource]:
        """Return the tensors by aligned name."""
        wanted, built = self._wanted, dict[str, TensorSource]()
        for (role, expert), name in wanted.split.items():
            built[own_name(wanted, self._found, name)] = self._matrix(role, expert, name)
        for role, (name, form) in wanted.stacked.items():
            built[own_name(wanted, self._found, name)] = self._stack(role, form, name)
        return built

    def _stack(self, role: Role, form: Stack, name: str) -> TensorSource:
        own = self._found.stacked.get(role)
        if own is not None and own[1].halves == form.halves and len(self._tensors[own[0]].shape) == 3:
            whole = self._tensors[own[0]]  # the same matrices under another name, or each of them transposed
            return whole if own[1].in_out == form.in_out else transpose(whole)
        matrices: list[TensorSource] = []
        for expert in range(form.count):
            parts = [self._matrix(part, expert, name) for part in (_GATE_AND_UP if role == "gate_up" else (role,))]
            matrix = interleave(parts) if form.halves == "interleaved" else concatenate(parts)
            matrices.append(transpose(matrix) if form.in_out else matrix)
        shape = self._reference.shapes[name]
        built = stack(matrices)
        return reshape(built, (built.shape[0] * built.shape[1], built.shape[2])) if len(shape) == 2 else built

    def _matrix(self, role: Role, expert: int, wanted: str) -> TensorSource:
        """Return one projection of one expert, (out, in)."""
        name = self._found.split.get((role, expert))
        if name is not None:
            return self._tensors[name]
        stacked = self._found.stacked.get(role)
        if stacked is not None:
            return self._of_stack(stacked[0], stacked[1], expert)
        fused = self._found.stacked.get("gate_up")
        if fused is not None and role in ("gate", "up"):
            matrix = self._of_stack(fused[0], fused[1], expert)
            half = matrix.shape[0] // 2
            if fused[1].halves == "interleaved":
                return select(matrix, 0, 0 if role == "gate" else 1, matrix.shape[0], 2)
            return select(matrix, 0, 0, half) if role == "gate" else select(matrix, 0, half, 2 * half)
        raise CheckpointError(
            f"{self._model}: the {role} projection of expert {expert} in {self._found.owner} is missing, the base needs"
            f" it for {wanted}; give a complete model"
        )

    def _of_stack(self, name: str, form: Stack, expert: int) -> TensorSource:
        source = self._tensors[name]
        if len(source.shape) == 2:
            source = reshape(source, (form.count, source.shape[0] // form.count, source.shape[1]))
        matrix = select_index(source, expert)
        return transpose(matrix) if form.in_out else matrix


def interleave(parts: list[TensorSource]) -> TensorSource:
    """Return the rows of matrices of equal shape in turn: the first of each, then the second of each."""
    rows, columns = parts[0].shape
    return reshape(concatenate([reshape(part, (rows, 1, columns)) for part in parts], 1), (rows * len(parts), columns))
