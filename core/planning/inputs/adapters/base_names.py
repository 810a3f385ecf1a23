"""Find the weights of the base that an adapter names differently: another prefix, or another module of the mixture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import final

from ...names import layer_of
from ..layouts.mixtures import Role, find_mixtures
from ..layouts.stacks import Stack

_MEMBER = re.compile(r"^(?P<parent>.*\.experts)\.(?P<index>\d+)\.(?P<part>\w+)\.weight$")


def match_member(name: str) -> tuple[str, int, str] | None:
    """Return the parts of a name of one expert's weight: module, expert, part; ("l.0.experts", 3, "w1")."""
    match = _MEMBER.match(name)
    return (match["parent"], int(match["index"]), match["part"]) if match else None


@final
class BaseNames:
    """The names of the base, found by what follows the prefix of a stack of layers. Indexed at the first search.

    shapes : by name
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self._by_tail: dict[str, list[str]] | None = None
        self._experts: dict[str, dict[int, dict[str, str]]] | None = None
        self._stacks: dict[str, dict[Role, tuple[str, Stack]]] | None = None

    def find(self, name: str) -> str | None:
        """Return the base's name: the same, or the only one of the same layer that differs in its first parts."""
        if name in self.shapes:
            return name
        if self._by_tail is None:
            self._by_tail = {}
            for own in self.shapes:
                self._by_tail.setdefault(_tail(own), []).append(own)
        found = self._by_tail.get(_tail(name), [])
        return found[0] if len(found) == 1 else None

    def experts(self, module: str) -> Mapping[int, Mapping[str, str]]:
        """Return the weights of a mixture that is stored one by one: by expert, then by part.

        Libraries call the module differently (`mlp.experts`, `block_sparse_moe.experts`); a layer has one mixture.
        """
        by_parent = self._members()
        if module in by_parent or not module.endswith("experts"):
            return by_parent.get(module, {})
        parent = _only_one_in_layer(by_parent, module)
        return by_parent[parent] if parent is not None else {}

    def stack(self, module: str, role: Role) -> str | None:
        """Return the stack that holds a projection of all experts of a mixture, whatever module and stack are called.

        Gate and up are one after the other in it, as in every family but GPT-OSS.
        """
        if self._stacks is None:
            self._stacks = {mixture.owner: mixture.stacked for mixture in find_mixtures(self.shapes, None)}
        owner = _only_one_in_layer(self._stacks, module) if module.endswith("experts") else None
        name, form = self._stacks[owner].get(role, (None, None)) if owner is not None else (None, None)
        return name if form is not None and form.halves != "interleaved" else None

    def _members(self) -> Mapping[str, Mapping[int, Mapping[str, str]]]:
        """Return the names of the weights of single experts: by module, by expert, then by part."""
        if self._experts is None:
            self._experts = {}
            for name in self.shapes:
                member = match_member(name)
                if member is not None:
                    parent, expert, part = member
                    self._experts.setdefault(parent, {}).setdefault(expert, {})[part] = name
        return self._experts


def _only_one_in_layer(modules: Iterable[str], module: str) -> str | None:
    """Return the only one of these modules that is in the same layer as another module, given by a model's name for it.

    The stacks of layers may be below different modules.
    """
    layer = layer_of(f"{module}.")
    if layer is None:
        return None
    found = [
        other
        for other in modules
        for own in [layer_of(f"{other}.")]
        if own is not None and own[1] == layer[1] and own[0].rpartition(".")[2] == layer[0].rpartition(".")[2]
    ]
    return found[0] if len(found) == 1 else None


def _tail(name: str) -> str:
    """Return a name from its stack of layers on: layers.3.mlp.experts.w for model.language_model.layers.3.mlp..."""
    layer = layer_of(name)
    return name if layer is None else layer[0].rpartition(".")[2] + name[len(layer[0]) :]
