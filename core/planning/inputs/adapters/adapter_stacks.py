"""LoRA adapters of the experts of a mixture, whether the adapter and the base store them stacked or one by one.

A parameter of shape (E, M, K) that `target_parameters` names has one pair of factors for all its E matrices:

    lora_A.weight, (E * R, K): the rows of matrix e are [e R, (e + 1) R)
    lora_B.weight, (M, R * E): the columns of matrix e are e, e + E, e + 2 E, ...

The names contain the module and not the parameter: PEFT nests one wrapper per parameter, `experts.lora_A` and
`experts.base_layer.lora_A`. Shapes and ranks tell which parameter each belongs to. PEFT takes (E, M, K) as
(E, out, in), or as (E, in, out) where the module says so and in earlier versions; the shapes tell this too.

References
----------
PEFT, peft/tuners/lora/layer.py, `ParamWrapper.get_delta_weight`; transformers 5, conversion_mapping.py, for the order
of gate and up in `gate_up_proj`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import cast

from ....errors import ShapeError
from ....listing import LoraPart, LoraSource, StackedLora, TensorSource
from ....views import select
from ..layouts.mixtures import Role
from .adapter_options import Scaling
from .base_names import BaseNames

# The weights of one expert that a stacked parameter holds, one below the other, under the names of several families.
_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
_STACK_ROLES: Mapping[str, Role] = {"gate_up_proj": "gate_up", "down_proj": "down"}


@dataclass(slots=True)
class ModuleFactors:
    """The factors of one module.

    levels : "A" and "B" by the number of wrappers around the module's parameter; one level outside of mixtures
    """

    levels: dict[int, dict[str, TensorSource]] = field(default_factory=dict[int, dict[str, TensorSource]])
    is_embedding: bool = False


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter of the base that factors belong to.

    key : as in PEFT, `<module>.<parameter>`, which patterns of ranks match
    shape : as PEFT sees it: (E, M, K), or (M, K)
    name : in the base; None where the base stores its experts one by one
    members : for each expert the names in the base and their rows, where it stores them one by one
    """

    key: str
    shape: tuple[int, ...]
    name: str | None
    members: tuple[tuple[tuple[str, int], ...], ...] = ()


def find_parameters(module: str, config: Mapping[str, object], base: BaseNames) -> list[_Parameter]:
    """Return the parameters of a module that `target_parameters` names and that the base has."""
    targets = config.get("target_parameters")
    if not isinstance(targets, (list, tuple)):
        return []
    found: dict[str, _Parameter] = {}
    for target in cast("Sequence[object]", targets):
        prefix, _, last = str(target).rpartition(".")
        if f".{module}".endswith(f".{prefix}" if prefix else ""):
            parameter = _find_parameter(f"{module}.{last}", base)
            if parameter is not None:
                found[last] = parameter
    return list(found.values())


def resolve_parameters(
    module: str, own: ModuleFactors, parameters: Sequence[_Parameter], scaling: Scaling, uri: str
) -> dict[str, LoraSource | StackedLora]:
    """Return the factors of a module's parameters by the base's names.

    Parameters
    ----------
    parameters : result of `find_parameters`

    Raises
    ------
    ShapeError : the factors fit no parameter, or it is unknown which
    """
    levels = [own.levels[depth] for depth in sorted(own.levels, reverse=True)]
    shapes = ", ".join(f"lora_B {list(level['B'].shape)}, lora_A {list(level['A'].shape)}" for level in levels)
    fitting: list[list[tuple[_Parameter, int, float, set[bool]]]] = []
    for chosen in permutations(parameters, len(levels)):
        fits = [_fit(level, parameter, scaling) for level, parameter in zip(levels, chosen, strict=True)]
        if all(orientations for _, _, orientations in fits):
            fitting.append([(one, *fit) for one, fit in zip(chosen, fits, strict=True)])
    expected = ", ".join(f"{one.key} {list(one.shape)}" for one in parameters)
    if len(fitting) != 1:
        problem = "fit none of" if not fitting else "could belong to each of"
        raise ShapeError(
            f"adapter {uri}: the factors of {module} ({shapes}) {problem} the base's parameters {expected}; merge the"
            " adapter into its base first and give the full model as expert"
        )
    # All parameters of a module are stored in one orientation.
    stacked = [orientations for one, _, _, orientations in fitting[0] if len(one.shape) == 3]
    common = set[bool]({False, True}).intersection(*stacked)
    if stacked and len(common) != 1:
        raise ShapeError(
            f"adapter {uri}: {expected} is square, so it is unknown which side of it the factors of {module}"
            f" ({shapes}) call the input; merge the adapter into its base first and give the full model as expert"
        )
    found: dict[str, LoraSource | StackedLora] = {}
    for level, (parameter, rank, scale, _) in zip(levels, fitting[0], strict=True):
        transposed = len(parameter.shape) == 3 and common == {True}
        factors = LoraSource(level["B"], level["A"], scale, transposed)
        found |= _place(parameter, factors, rank)
    return found


def _fit(level: Mapping[str, TensorSource], parameter: _Parameter, scaling: Scaling) -> tuple[int, float, set[bool]]:
    """Return rank and scaling, and the orientations in which factors fit: {False} (out, in), {True} (in, out)."""
    rank, scale = scaling.of(parameter.key)
    count = parameter.shape[0] if len(parameter.shape) == 3 else 1
    up, down = level["B"].shape, level["A"].shape
    if down[0] != rank * count or up[1] != rank * count:
        return rank, scale, set()
    sides = (up[0], down[1])
    orientations = {False} if sides == parameter.shape[-2:] else set[bool]()
    if len(parameter.shape) == 3 and sides[::-1] == parameter.shape[-2:]:
        orientations.add(True)
    return rank, scale, orientations


def _place(parameter: _Parameter, factors: LoraSource, rank: int) -> dict[str, LoraSource | StackedLora]:
    """Return the factors of a parameter by the names under which the base stores it."""
    if len(parameter.shape) == 2:
        assert parameter.name is not None
        return {parameter.name: factors}
    count, rows = parameter.shape[:2]
    each = [
        replace(
            factors,
            up=select(factors.up, 1, expert, rank * count, count),
            down=select(factors.down, 0, expert * rank, (expert + 1) * rank),
            is_shared=True,
        )
        for expert in range(count)
    ]
    if parameter.name is not None:
        parts = tuple(LoraPart(one, expert, 0, rows) for expert, one in enumerate(each))
        return {parameter.name: StackedLora(parts, parameter.shape)}
    found: dict[str, LoraSource | StackedLora] = {}
    for one, parts in zip(each, parameter.members, strict=True):
        start = 0
        for name, size in parts:
            if factors.fan_in_fan_out:
                found[name] = replace(one, down=select(one.down, 1, start, start + size))
            else:
                found[name] = replace(one, up=select(one.up, 0, start, start + size))
            start += size
    return found


def _find_parameter(key: str, base: BaseNames) -> _Parameter | None:
    """Return the base's parameter that PEFT calls `key`, stacked or one by one."""
    name = base.find(key)
    if name is not None:
        return _Parameter(key, base.shapes[name], name) if len(base.shapes[name]) in (2, 3) else None
    module, _, last = key.rpartition(".")
    role = _STACK_ROLES.get(last)
    stack = base.stack(module, role) if role is not None else None
    if stack is not None and len(base.shapes[stack]) == 3:
        return _Parameter(key, base.shapes[stack], stack)
    experts = base.experts(module)
    for form in _PARTS.get(last, ((last,),)):
        members = [experts[number] for number in sorted(experts)]
        if not members or sorted(experts) != list(range(len(members))) or any(part not in members[0] for part in form):
            continue
        if any(part not in one for one in members for part in form):
            return None
        parts = tuple(tuple((one[part], base.shapes[one[part]][0]) for part in form) for one in members)
        shapes = {tuple(base.shapes[one[part]] for part in form) for one in members}
        if len(shapes) == 1 and all(len(shape) == 2 for shape in next(iter(shapes))):
            rows = sum(size for _, size in parts[0])
            return _Parameter(key, (len(members), rows, next(iter(shapes))[0][1]), None, parts)
    return None
