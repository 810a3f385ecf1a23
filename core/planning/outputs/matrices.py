"""The matrices of one stored tensor that a spectral method decomposes.

A 2-D weight is one matrix. A stack (E, M, K) of a mixture is E matrices, a convolution kernel can be one matrix
(out, in * kernel), and a fused QKV weight can be cut into q, k and v. All of these are reshapes and cuts of the stored
tensor. A weight in which q, k and v alternate head by head is refused, because no cut separates them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

from ...errors import RecipeError
from ..names import Kind

_FUSED_QKV = re.compile(r"(^|\.)(qkv|qkv_proj|Wqkv|c_attn|query_key_value|wqkv)\.weight$|(^|\.)in_proj_weight$")
_INTERLEAVED = re.compile(r"(^|\.)(query_key_value|wqkv)\.weight$")  # GPT-NeoX, Bloom, Falcon; InternLM2


@dataclass(frozen=True, slots=True)
class Cut:
    """One matrix: rows (axis 0) or columns (axis 1) [start, stop) of the tensor in its 2-D form."""

    label: str
    start: int
    stop: int
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Matrices:
    """The 2-D form of a tensor and its cuts.

    matrix_shape : shape that the tensor is reshaped to, None for its own shape
    cuts : the matrices; empty where the 2-D form is one matrix
    """

    matrix_shape: tuple[int, int] | None
    cuts: tuple[Cut, ...] = ()

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return the shape of each matrix of a tensor of this shape."""
        rows, columns = self.matrix_shape or (shape[0], shape[1])
        if not self.cuts:
            return [(rows, columns)]
        return [(cut.stop - cut.start, columns) if cut.axis == 0 else (rows, cut.stop - cut.start) for cut in self.cuts]


AS_STORED = Matrices(None)


def is_fused_qkv(name: str) -> bool:
    """Return whether a weight contains q, k and v, by its name."""
    return bool(_FUSED_QKV.search(name))


def matrices_of(
    name: str, shape: tuple[int, ...], kind: Kind, split_qkv: bool, config: Mapping[str, object] | None
) -> Matrices:
    """Return the matrices of a tensor.

    Parameters
    ----------
    config : config.json of the reference, for the numbers of heads

    Raises
    ------
    RecipeError : q, k and v are to be split, and cannot be
    """
    if kind == "expert_stack":
        count, rows, columns = shape
        cuts = tuple(Cut(f"expert {index}", index * rows, (index + 1) * rows) for index in range(count))
        return Matrices((count * rows, columns), cuts)
    if len(shape) > 2:
        return Matrices((shape[0], prod(shape[1:])))
    if split_qkv and is_fused_qkv(name):
        return Matrices(None, _qkv_cuts(name, shape, config or {}))
    return AS_STORED


def _qkv_cuts(name: str, shape: tuple[int, ...], config: Mapping[str, object]) -> tuple[Cut, ...]:
    if _INTERLEAVED.search(name):
        raise RecipeError(
            f"qkv: split: {name} stores q, k and v head by head and cannot be cut; use qkv: stored for it"
        )
    axis = 1 if shape[1] == 3 * shape[0] else 0  # GPT-2 stores (in, out)
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
