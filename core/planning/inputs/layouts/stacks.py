"""Stacks: one tensor that contains a matrix of every expert of a mixture, (experts, out, in) or (experts, in, out)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .orientation import Shapes

# How the outputs of gate and up projection lie in one matrix: one after the other, or in turn (GPT-OSS).
Halves = Literal["concatenated", "interleaved"]


@dataclass(frozen=True, slots=True)
class Stack:
    """How a stacked tensor is divided into matrices.

    count : number of experts
    halves : each matrix holds gate and up projection, in this way; None for one projection
    in_out : each matrix is stored (in, out)
    """

    count: int
    halves: Halves | None = None
    in_out: bool = False

    def parts(self, length: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield label, start, stop and step of each projection, along the outputs of one expert's matrix.

        Parameters
        ----------
        length : number of outputs
        """
        if self.halves is None:
            yield "", 0, length, 1
        elif self.halves == "concatenated":
            yield " gate", 0, length // 2, 1
            yield " up", length // 2, length, 1
        else:
            yield " gate", 0, length, 2
            yield " up", 1, length, 2


# Families whose stacks are (experts, in, out), for layers in which all sizes are the same.
_IN_OUT_MODEL_TYPES = frozenset({"llama4", "llama4_text", "gpt_oss", "aria", "aria_text", "openai_privacy_filter"})


@dataclass(frozen=True, slots=True)
class StackReader:
    """Tells from the shapes of a mixture's stacks how each is divided into matrices.

    shapes : of all tensors of the model
    count : number of experts
    hidden : possible sizes of the mixture's inputs and outputs
    model_types : of the model and its parts
    """

    shapes: Shapes
    count: int
    hidden: set[int]
    model_types: set[str]

    def fits(self, name: str) -> bool:
        """Return whether a tensor can be a stack of this number of matrices."""
        shape = self.shapes[name]
        return shape[0] == self.count if len(shape) == 3 else shape[0] % self.count == 0

    def read(self, name: str, first: str | None, down: str | None, *, is_first: bool, is_down: bool) -> Stack:
        """Return the division of a stack.

        Parameters
        ----------
        first, down : the stacks of the mixture's first and last projection, by name
        is_first, is_down : which of them, if any, this stack is
        """
        if len(self.shapes[name]) == 2:  # DBRX multiplies w2 from the right, w1 and v1 transposed
            return Stack(self.count, None, is_down)
        in_out = self._is_in_out(name, first, down, is_down)
        if not is_first or not self._holds_gate_and_up(name, down, in_out):
            return Stack(self.count, None, in_out)
        return Stack(self.count, self._halves(name, in_out), in_out)

    def _is_in_out(self, name: str, first: str | None, down: str | None, is_down: bool) -> bool:
        rows, columns = self.shapes[name][1:]
        bias = self._bias_length(name)
        if bias is not None and rows != columns:
            return bias == columns
        if first is not None and down is not None:  # with gate and up in one matrix the two shapes show it
            (first_rows, first_columns), (down_rows, down_columns) = self.shapes[first][1:], self.shapes[down][1:]
            if first_rows == 2 * down_columns and first_columns == down_rows:
                return False
            if first_columns == 2 * down_rows and first_rows == down_columns:
                return True
        if rows != columns and (rows in self.hidden) != (columns in self.hidden):
            return (rows in self.hidden) != is_down
        return bool(self.model_types & _IN_OUT_MODEL_TYPES)

    def _bias_length(self, name: str) -> int | None:
        """Return the number of outputs by the bias of a stack; None where there is none."""
        bias = bias_of_stack(name, self.shapes, self.count)
        return self.shapes[bias][1] if bias is not None else None

    def _holds_gate_and_up(self, name: str, down: str | None, in_out: bool) -> bool:
        rows, columns = self.shapes[name][1:]
        outputs = columns if in_out else rows
        if down is None or len(self.shapes[down]) != 3:
            return "gate_up" in name or "w13" in name
        down_rows, down_columns = self.shapes[down][1:]
        return outputs == 2 * (down_rows if in_out else down_columns)

    def _halves(self, name: str, in_out: bool) -> Halves:
        if "gpt_oss" in self.model_types or ("w13" in name and any("inkling" in one for one in self.model_types)):
            return "interleaved"
        # Without a config, GPT-OSS is recognized by its biases.
        return "interleaved" if not self.model_types and in_out and self._bias_length(name) else "concatenated"


def bias_of_stack(name: str, shapes: Shapes, count: int) -> str | None:
    """Return the name of the bias of a stack, (experts, outputs); None where there is none."""
    module = name.removesuffix(".weight")
    for other in (f"{module}_bias", f"{module}.bias"):
        shape = shapes.get(other)
        if shape is not None and len(shape) == 2 and shape[0] == count:
            return other
    return None
