"""The matrices of one stored tensor that a spectral method decomposes.

A 2-D weight is one matrix. A stack (E, M, K) of a mixture is E matrices, or twice as many if gate and up projection are
stored together. A convolution kernel can be one matrix (out, in * kernel), and a fused QKV weight can be cut into q, k
and v. A weight in which q, k and v alternate head by head is refused, because no cut separates them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

from ...errors import RecipeError
from ..inputs.layouts.stacks import Stack
from ..names import Kind
from ..plan import Cut, matrix_shape_of

_FUSED_QKV = re.compile(r"(^|\.)(qkv|qkv_proj|Wqkv|c_attn|query_key_value|wqkv)\.weight$|(^|\.)in_proj_weight$")
_INTERLEAVED = re.compile(r"(^|\.)(query_key_value|wqkv)\.weight$")  # GPT-NeoX, Bloom, Falcon; InternLM2


@dataclass(frozen=True, slots=True)
class Matrices:
    """The 2-D form of a tensor and its cuts.

    matrix_shape : shape that the tensor is reshaped to, None for its own shape
    cuts : the matrices; empty where the 2-D form is one matrix
    in_out : each matrix is stored (in, out)
    """

    matrix_shape: tuple[int, int] | None
    cuts: tuple[Cut, ...] = ()
    in_out: bool = False

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return the shape (out, in) of each matrix of a tensor of this shape."""
        form = self.matrix_shape or shape
        return [matrix_shape_of(form, cut, self.in_out) for cut in self.cuts or (None,)]


def is_fused_qkv(name: str) -> bool:
    """Return whether a weight contains q, k and v, by its name."""
    return bool(_FUSED_QKV.search(name))


def matrices_of(
    name: str,
    shape: tuple[int, ...],
    kind: Kind,
    split_qkv: bool,
    config: Mapping[str, object] | None,
    *,
    in_out: bool = False,
    stack: Stack | None = None,
) -> Matrices:
    """Return the matrices of a tensor.

    Parameters
    ----------
    config : config.json of the reference, for the numbers of heads
    in_out : matrices are stored (in, out)
    stack : how a stack is divided into matrices

    Raises
    ------
    RecipeError : q, k and v are to be split, and cannot be
    """
    if kind == "expert_stack":
        return _stack_matrices(shape, stack or Stack(shape[0]), in_out)
    if len(shape) > 2:
        return Matrices((shape[0], prod(shape[1:])))
    if split_qkv and is_fused_qkv(name):
        return Matrices(None, _qkv_cuts(name, shape, config or {}, axis=1 if in_out else 0), in_out)
    return Matrices(None, (), in_out)


def _stack_matrices(shape: tuple[int, ...], stack: Stack, in_out: bool) -> Matrices:
    """Return one matrix for each expert, or its gate and up projection separately, as a split checkpoint has them."""
    axis = 1 if in_out else 0
    in_rows = len(shape) == 2  # (experts * rows, columns)
    length = shape[0] // stack.count if in_rows else shape[1 + axis]
    cuts: list[Cut] = []
    for number in range(stack.count):
        for part, start, stop, step in stack.parts(length):
            label = f"expert {number}{part}"
            if in_rows:
                cuts.append(Cut(label, number * length + start, number * length + stop))
            else:
                cuts.append(Cut(label, start, stop, axis, number, step))
    return Matrices(None, tuple(cuts), in_out)


def _qkv_cuts(name: str, shape: tuple[int, ...], config: Mapping[str, object], axis: int) -> tuple[Cut, ...]:
    if _INTERLEAVED.search(name):
        raise RecipeError(
            f"qkv: split: {name} stores q, k and v head by head and cannot be cut; use qkv: stored for it"
        )
    total = shape[axis]
    text = config.get("text_config")
    sizes = _qkv_sizes(cast("Mapping[str, object]", text) if isinstance(text, Mapping) else config)
    if sizes is None or sum(sizes) != total:
        if total % 3:
            raise RecipeError(
                f"qkv: split: {name} has shape {list(shape)}, which matches neither the heads in config.json nor three"
                " equal parts; use qkv: stored for it"
            )
        sizes = (total // 3,) * 3
    stops = (sizes[0], sizes[0] + sizes[1], total)
    starts = (0, *stops[:2])
    return tuple(Cut(label, start, stop, axis) for label, start, stop in zip("qkv", starts, stops, strict=True))


def _qkv_sizes(config: Mapping[str, object]) -> tuple[int, int, int] | None:
    """Return the rows of q, k and v, None where config.json does not contain them."""
    heads = config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return None
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    if not isinstance(kv_heads, int) or not isinstance(head, int):
        return None
    return heads * head, kv_heads * head, kv_heads * head
