"""The table of tensor dtypes: safetensors name, bits per element, kind, and the name of the same dtype in torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

DtypeKind = Literal[
    "float",  # weights; merged
    "float8",  # weights, usually stored with a scale; read as float32 and merged
    "integer",
    "bool",
    "complex",
    "opaque",  # other small floats; copied, never merged
]
# The dtypes in which a merge can be written, by the names that recipes use. torch and NumPy use the same names.
OutputDtype = Literal["float64", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """One dtype of the safetensors format.

    name : str, as in safetensors headers
    bits : int, size of one element
    torch_name : str or None, attribute of the torch module; None where torch has no such dtype
    """

    name: str
    bits: int
    kind: DtypeKind
    torch_name: str | None


DTYPES: Mapping[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("F64", 64, "float", "float64"),
        Dtype("F32", 32, "float", "float32"),
        Dtype("BF16", 16, "float", "bfloat16"),
        Dtype("F16", 16, "float", "float16"),
        Dtype("F8_E4M3", 8, "float8", "float8_e4m3fn"),
        Dtype("F8_E5M2", 8, "float8", "float8_e5m2"),
        Dtype("F8_E4M3FNUZ", 8, "opaque", "float8_e4m3fnuz"),
        Dtype("F8_E5M2FNUZ", 8, "opaque", "float8_e5m2fnuz"),
        Dtype("F8_E8M0", 8, "opaque", "float8_e8m0fnu"),
        Dtype("F6_E2M3", 6, "opaque", None),
        Dtype("F6_E3M2", 6, "opaque", None),
        Dtype("F4", 4, "opaque", None),
        Dtype("I64", 64, "integer", "int64"),
        Dtype("U64", 64, "integer", "uint64"),
        Dtype("I32", 32, "integer", "int32"),
        Dtype("U32", 32, "integer", "uint32"),
        Dtype("I16", 16, "integer", "int16"),
        Dtype("U16", 16, "integer", "uint16"),
        Dtype("I8", 8, "integer", "int8"),
        Dtype("U8", 8, "integer", "uint8"),
        Dtype("BOOL", 8, "bool", "bool"),
        Dtype("C64", 64, "complex", "complex64"),
    )
}

# Rows and columns of a weight that share one number of a block scale, in the float8 checkpoints of DeepSeek.
SCALE_BLOCK_SIZE = 128

OUTPUT_DTYPES: tuple[OutputDtype, ...] = get_args(OutputDtype)
MERGEABLE_DTYPES = frozenset(dtype.name for dtype in DTYPES.values() if dtype.kind in {"float", "float8"})
FLOAT8_DTYPES = frozenset(dtype.name for dtype in DTYPES.values() if dtype.kind == "float8")


def safetensors_name(torch_name: str) -> str:
    """Return the safetensors name of a dtype that is given by its torch name: "BF16" for "bfloat16".

    Raises
    ------
    KeyError : safetensors has no such dtype
    """
    return _NAME_BY_TORCH_NAME[torch_name]


def element_bytes(name: str) -> int:
    """Return the bytes of one element, at least 1."""
    return max(1, DTYPES[name].bits // 8)


@lru_cache(maxsize=4096)  # a plan asks a dozen times for each tensor, of few shapes
def tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a stored tensor. Dtypes below one byte are packed; such a tensor fills whole bytes."""
    bits = DTYPES[name].bits * math.prod(shape)
    assert bits % 8 == 0, (name, shape)
    return bits // 8


_NAME_BY_TORCH_NAME = {dtype.torch_name: dtype.name for dtype in DTYPES.values() if dtype.torch_name is not None}
