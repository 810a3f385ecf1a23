"""The layout of the model that gives the output its tensors: kind, orientation and matrices of each."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import final

from ...names import Kind, tensor_kind
from .mixtures import Mixture, find_mixtures
from .orientation import Shapes, find_in_out, same_modules
from .stacks import Stack


@final
class Layout:
    """How a model stores its matrices.

    mixtures : in the order of their first tensor
    shapes : by tensor name
    config : config.json of the model
    """

    def __init__(self, shapes: Shapes, config: Mapping[str, object] | None) -> None:
        self.mixtures: list[Mixture] = find_mixtures(shapes, config)
        self.shapes = shapes
        self.config = config
        self._in_out = find_in_out(shapes, config)
        self._stacks = {
            name: stack
            for mixture in self.mixtures
            for name in mixture.names
            for stack in [mixture.stack_of(name)]
            if stack is not None
        }
        self._routers = frozenset(name for mixture in self.mixtures for name in mixture.routers)

    def learn(self, in_out: Set[str]) -> None:
        """Take note of weights that are stored (in, out), as the factors of an adapter show, which are never so."""
        if not in_out <= self._in_out:
            names = [name for name, shape in self.shapes.items() if len(shape) == 2]
            self._in_out = same_modules(in_out | self._in_out, in_out | self._in_out, names)

    def kind(self, name: str, shape: tuple[int, ...], dtype: str) -> Kind:
        """Return the kind of a tensor. A stack is found by the number of experts, whatever its name is."""
        kind = tensor_kind(name, shape, dtype)
        if kind in ("buffer", "empty"):
            return kind
        if name in self._routers:
            return "router" if len(shape) == 2 and kind != "vector" else "router_vector"
        return "expert_stack" if name in self._stacks else kind

    def stack(self, name: str) -> Stack | None:
        """Return how a stack is divided into matrices; None for any other tensor."""
        return self._stacks.get(name)

    def in_out(self, name: str) -> bool:
        """Return whether the matrices of a tensor are stored (in, out)."""
        stack = self._stacks.get(name)
        return stack.in_out if stack is not None else name in self._in_out
