"""Find the mixtures of experts of a model, and which stored tensors hold which expert's projections.

The names differ between families and libraries:

    mlp.experts.3.gate_proj.weight, up_proj, down_proj   one tensor for each expert (also w1, w3, w2; fc1, fc3, fc2)
    mlp.experts.gate_up_proj, down_proj                  stacked, gate and up in one tensor (Transformers 5)
    block_sparse_moe.input_linear.weight, output_linear  the same (Granite)
    moe.gate_proj.weight, mlp.switch_mlp.up_proj.weight  stacked, one tensor for each projection (Step, MLX)
    ffn.experts.mlp.w1, v1, w2                           the experts' rows one after the other in one 2-D tensor (DBRX)

A tensor counts as a stack by its first size, the number of experts of the config or of the router beside it, or by a
stack beside it whose shape fits. Shapes also show how a stack is oriented, and whether its first projection holds gate
and up.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from .orientation import Shapes, config_parts, model_types
from .stacks import Stack, StackReader

Role = Literal["gate", "up", "gate_up", "down"]

_SPLIT = re.compile(
    r"^(?P<owner>.+)\.(?P<list>(?!shared)\w*experts)\.(?:expert_)?(?P<expert>\d+)\.(?:mlp\.)?(?P<projection>\w+)\.weight$"
)
_STACKED = re.compile(
    r"^(?P<owner>.+?)\.(?:(?P<list>(?!shared)\w*experts(?:\.mlp)?|switch_mlp)\.)?(?P<projection>\w+?)(?:\.weight)?$"
)
_CONVOLUTION = re.compile(r"conv|(^|\.)patch_embed")
_ROUTER = re.compile(r"(^|\.)(gate|router|wg)(\.|$)|router")
_EXPERT_COUNT = re.compile(r"expert")
_OTHER_COUNT = re.compile(r"per_tok|shared|top_?k|group|capacity|size|dim|interval|period|freq|layer|select|active")

# The projections by name. "first" is the first projection of a mixture whose shapes show whether it holds gate and up.
_ROLES: Mapping[str, Role | Literal["first"]] = {
    **dict.fromkeys(("gate_proj", "gate", "wg"), "gate"),
    **dict.fromkeys(("up_proj", "v1", "w3", "fc3"), "up"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "wo", "output_linear", "w2_weight", "down_projs"), "down"),
    **dict.fromkeys(("gate_up_proj", "input_linear", "w13", "w13_weight", "w1", "fc1", "wi"), "first"),
    **dict.fromkeys(("gate_up_projs", "gate_and_up_projs"), "first"),
}


@dataclass(slots=True)
class Mixture:
    """The experts of one layer, and their stored tensors.

    owner : the module that holds experts and router: "model.layers.0.mlp"
    count : number of experts
    split : stored name of each expert's projection, one tensor for each
    stacked : stored name and division of each stacked tensor
    routers : names of the tensors that choose the experts
    """

    owner: str
    count: int
    split: dict[tuple[Role, int], str] = field(default_factory=dict[tuple[Role, int], str])
    stacked: dict[Role, tuple[str, Stack]] = field(default_factory=dict[Role, tuple[str, Stack]])
    others: dict[str, Stack] = field(default_factory=dict[str, Stack])  # stacks of unknown projections, by name
    routers: list[str] = field(default_factory=list[str])

    @property
    def names(self) -> set[str]:
        """The stored names of all experts' weights."""
        return {*self.split.values(), *(name for name, _ in self.stacked.values()), *self.others}

    def stack_of(self, name: str) -> Stack | None:
        """Return the division of a stacked tensor; None for another tensor."""
        found = (stack for other, stack in self.stacked.values() if other == name)
        return next(found, self.others.get(name))


def find_mixtures(shapes: Shapes, config: Mapping[str, object] | None) -> list[Mixture]:
    """Return the mixtures of a model, in the order of their first tensor.

    Parameters
    ----------
    shapes : by tensor name
    config : config.json of the model
    """
    config = config or {}
    counts = expert_counts(config)
    split: dict[str, dict[tuple[str, int], str]] = defaultdict(dict)
    stacked: dict[str, dict[str, str]] = defaultdict(dict)
    owners: dict[str, None] = {}
    for name, shape in shapes.items():
        match = _SPLIT.match(name) if len(shape) == 2 and "expert" in name else None
        if match is not None:
            owners.setdefault(match["owner"])
            split[match["owner"]][match["projection"], int(match["expert"])] = name
        elif len(shape) == 3 or (len(shape) == 2 and "experts.mlp." in name):
            match = _STACKED.match(name)
            if match is not None and not _CONVOLUTION.search(name):
                owners.setdefault(match["owner"])
                stacked[match["owner"]][match["projection"]] = name
    scopes = _names_in(owners, shapes)
    found: list[Mixture] = []
    for owner in owners:
        routers = {name: shapes[name] for name in scopes[owner] if _is_router(name, owner)}
        mixture = _read_mixture(owner, split[owner], stacked[owner], routers, shapes, config, counts)
        if mixture is not None:
            found.append(mixture)
    return found


def expert_counts(config: Mapping[str, object]) -> set[int]:
    """Return the numbers of experts that config.json states: num_experts, n_routed_experts, num_local_experts, ..."""
    found: set[int] = set()
    for part in config_parts(config):
        for key, value in part.items():
            if _EXPERT_COUNT.search(key) and not _OTHER_COUNT.search(key):
                values = cast("list[object]", value) if isinstance(value, list) else [value]
                found.update(number for number in values if type(number) is int and number > 1)
    return found


def _names_in(owners: Iterable[str], shapes: Shapes) -> dict[str, list[str]]:
    """Return the names below each module."""
    found: dict[str, list[str]] = {owner: [] for owner in owners}
    for name in shapes if found else ():
        end = name.rfind(".")
        while end > 0:
            owner = name[:end]
            if owner in found:
                found[owner].append(name)
            end = name.rfind(".", 0, end)
    return found


def is_router_name(name: str) -> bool:
    """Return whether a name within a layer or mixture is that of a tensor that chooses experts."""
    return bool(_ROUTER.search(name)) and "shared" not in name


def _is_router(name: str, owner: str) -> bool:
    return _SPLIT.match(name) is None and is_router_name(name[len(owner) + 1 :])


def _read_mixture(
    owner: str,
    split: Mapping[tuple[str, int], str],
    stacked: Mapping[str, str],
    routers: Mapping[str, tuple[int, ...]],
    shapes: Shapes,
    config: Mapping[str, object],
    counts: set[int],
) -> Mixture | None:
    """Return the mixture of one module; None where its 3-D tensors are no stacks."""
    roles = _roles({projection for projection, _ in split} | set(stacked))
    if split:
        count = 1 + max(expert for _, expert in split)
    else:
        count = _count_of_stacks(stacked, roles, routers, shapes, counts)
        if count is None:
            return None
    mixture = Mixture(owner, count)
    for (projection, expert), name in split.items():
        role = roles.get(projection)
        if role is not None:
            mixture.split["up" if role == "first" else role, expert] = name
    reader = StackReader(shapes, count, _hidden_sizes(config, routers, count), model_types(config))
    stacks = {projection: name for projection, name in stacked.items() if reader.fits(name)}
    first = next((name for projection, name in stacks.items() if roles.get(projection) == "first"), None)
    down = next((name for projection, name in stacks.items() if roles.get(projection) == "down"), None)
    for projection, name in stacks.items():
        role = roles.get(projection)
        stack = reader.read(name, first, down, is_first=role == "first", is_down=role == "down")
        if role is None:
            mixture.others[name] = stack
        else:
            known = ("gate_up" if stack.halves is not None else "up") if role == "first" else role
            mixture.stacked[known] = (name, stack)
    mixture.routers = [name for name, shape in routers.items() if count in shape and name not in mixture.names]
    return mixture


def _count_of_stacks(
    stacked: Mapping[str, str],
    roles: Mapping[str, str],
    routers: Mapping[str, tuple[int, ...]],
    shapes: Shapes,
    counts: set[int],
) -> int | None:
    """Return the number of experts of stacks: the first size, if the router, the config or the name confirms it."""
    beside = {size for shape in routers.values() if len(shape) == 2 for size in shape}
    for projection, name in stacked.items():
        shape = shapes[name]
        if len(shape) == 2:
            count = next((count for count in sorted(counts) if shape[0] % count == 0), None)
            if count is not None and projection in roles:
                return count
            continue
        is_known = projection in roles and (shape[0] in counts or _has_partner(name, roles, stacked, shapes))
        if is_known or shape[0] in beside or _is_named_stack(name):
            return shape[0]
    return None


def _has_partner(name: str, roles: Mapping[str, str], stacked: Mapping[str, str], shapes: Shapes) -> bool:
    """Return whether first and last projection of a mixture are beside each other: (E, ., H) and (E, H, .).

    Without a config and a router, the names of two linear maps of fitting shapes still show a stack.
    """
    own = shapes[name]
    others = [shapes[other] for projection, other in stacked.items() if other != name and projection in roles]
    return any(len(one) == 3 and one[0] == own[0] and bool({*own[1:]} & {*one[1:]}) for one in others)


def _is_named_stack(name: str) -> bool:
    return ".experts." in f".{name}" or ".switch_mlp." in name


def _roles(projections: set[str]) -> dict[str, Role | Literal["first"]]:
    """Return the role of each projection name. w1 and fc1 are the gate where w3, v1 or fc3 stands beside them."""
    roles: dict[str, Role | Literal["first"]] = {name: _ROLES[name] for name in projections if name in _ROLES}
    if "up" in roles.values():
        for name in [name for name, role in roles.items() if role == "first"]:
            roles[name] = "gate"
    return roles


def _hidden_sizes(config: Mapping[str, object], routers: Mapping[str, tuple[int, ...]], count: int) -> set[int]:
    """Return the size of the mixture's inputs: by its router, else by the config."""
    found = {
        shape[0] if shape[1] == count else shape[1]
        for shape in routers.values()
        if len(shape) == 2 and count in shape and shape[0] != shape[1]
    }
    if found:
        return found
    sizes = [part.get(key) for part in config_parts(config) for key in ("hidden_size", "d_model", "n_embd")]
    return {size for size in sizes if isinstance(size, int)}
