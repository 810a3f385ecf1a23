"""Express the biases of a mixture's experts in the form of the reference: a tensor for each expert, or one for all.

GPT-OSS has `experts.gate_up_proj_bias`, (experts, outputs), with gate and up in the order of the weight's outputs.
Beside single experts they are `experts.3.gate_proj.bias`, (outputs,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ....errors import CheckpointError
from ....listing import TensorSource
from ....views import concatenate, reshape, select, select_index, stack
from .mixtures import Mixture, Role
from .orientation import Shapes
from .stacks import Halves, bias_of_stack


@dataclass(frozen=True, slots=True)
class _Biases:
    """The stored names of a mixture's biases.

    stacked : with how gate and up lie in each expert's row
    """

    split: dict[tuple[Role, int], str] = field(default_factory=dict[tuple[Role, int], str])
    stacked: dict[Role, tuple[str, Halves | None]] = field(default_factory=dict[Role, tuple[str, Halves | None]])

    @property
    def names(self) -> list[str]:
        return [*self.split.values(), *(name for name, _ in self.stacked.values())]


def align_biases(
    reference: Shapes, tensors: Mapping[str, TensorSource], wanted: Mixture, found: Mixture, model: str
) -> tuple[dict[str, TensorSource], list[str]]:
    """Return a checkpoint's biases by the reference's names, and the names of those that these are made of.

    Parameters
    ----------
    reference : shapes of the reference's tensors by name
    wanted, found : the mixture in the reference and in the checkpoint
    model : name of the checkpoint, for errors

    Raises
    ------
    CheckpointError : some experts lack a bias that others have
    """
    shapes = {name: source.shape for name, source in tensors.items()}
    target, own = _find(wanted, reference), _find(found, shapes)
    if not target.names or not own.names:
        return {}, []

    def row(role: Role, expert: int, name: str) -> TensorSource:
        single = own.split.get((role, expert))
        if single is not None:
            return tensors[single]
        if role in own.stacked:
            return select_index(tensors[own.stacked[role][0]], expert)
        if role in ("gate", "up") and "gate_up" in own.stacked:
            fused, halves = own.stacked["gate_up"]
            both = select_index(tensors[fused], expert)
            length = both.shape[0]
            if halves == "interleaved":
                return select(both, 0, 0 if role == "gate" else 1, length, 2)
            return select(both, 0, 0, length // 2) if role == "gate" else select(both, 0, length // 2, length)
        raise CheckpointError(
            f"{model}: the bias of the {role} projection of expert {expert} in {found.owner} is missing, the base needs"
            f" it for {name}; give a complete model"
        )

    built = {name: row(role, expert, name) for (role, expert), name in target.split.items()}
    for role, (name, halves) in target.stacked.items():
        if role in own.stacked and own.stacked[role][1] == halves:
            built[name] = tensors[own.stacked[role][0]]
        elif role == "gate_up":
            pairs = [(row("gate", expert, name), row("up", expert, name)) for expert in range(wanted.count)]
            built[name] = stack([_join(gate, up, halves) for gate, up in pairs])
        else:
            built[name] = stack([row(role, expert, name) for expert in range(wanted.count)])
    return built, own.names


def _find(mixture: Mixture, shapes: Shapes) -> _Biases:
    found = _Biases()
    for place, name in mixture.split.items():
        bias = name.removesuffix(".weight") + ".bias"
        if bias in shapes:
            found.split[place] = bias
    for role, (name, form) in mixture.stacked.items():
        bias = bias_of_stack(name, shapes, mixture.count)
        if bias is not None:
            found.stacked[role] = (bias, form.halves)
    return found


def _join(gate: TensorSource, up: TensorSource, halves: Halves | None) -> TensorSource:
    if halves != "interleaved":
        return concatenate([gate, up])
    columns = [reshape(part, (part.shape[0], 1)) for part in (gate, up)]
    return reshape(concatenate(columns, 1), (2 * gate.shape[0],))
