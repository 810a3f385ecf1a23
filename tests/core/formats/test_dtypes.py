"""The table of dtypes agrees with the safetensors library and with torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors import deserialize
from safetensors.torch import save

from eigenmerge.core.formats.dtypes import (
    DTYPES,
    FLOAT8_DTYPES,
    MERGEABLE_DTYPES,
    OUTPUT_DTYPES,
    element_bytes,
    safetensors_name,
    tensor_bytes,
)

IN_TORCH = [dtype for dtype in DTYPES.values() if hasattr(torch, dtype.torch_name or "")]


@pytest.mark.parametrize("dtype", IN_TORCH, ids=lambda dtype: dtype.name)
def test_the_reference_implementation_writes_the_same_name_and_size(dtype) -> None:
    tensor = torch.zeros(3, 4, dtype=getattr(torch, dtype.torch_name))
    ((_, stored),) = deserialize(save({"x": tensor}))
    assert stored["dtype"] == dtype.name
    assert len(stored["data"]) == tensor_bytes(dtype.name, (3, 4)) == 12 * element_bytes(dtype.name)
    assert safetensors_name(dtype.torch_name) == dtype.name


def test_kinds_agree_with_torch() -> None:
    for dtype in IN_TORCH:
        found = getattr(torch, dtype.torch_name or "")
        assert found.is_floating_point == (dtype.kind in {"float", "float8", "opaque"}), dtype
        assert found.is_complex == (dtype.kind == "complex"), dtype


def test_groups() -> None:
    assert {"F8_E4M3", "F8_E5M2"} == FLOAT8_DTYPES
    assert {"F64", "F32", "BF16", "F16"} | FLOAT8_DTYPES == MERGEABLE_DTYPES
    assert [safetensors_name(name) for name in OUTPUT_DTYPES] == ["F64", "F32", "BF16", "F16"]


def test_packed_dtypes_fill_whole_bytes() -> None:
    assert tensor_bytes("F4", (3, 2)) == 3
    assert tensor_bytes("F6_E2M3", (4,)) == 3
    assert element_bytes("F4") == element_bytes("F6_E3M2") == 1
    assert tensor_bytes("F32", ()) == 4
    assert tensor_bytes("F32", (0, 5)) == 0


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, eigenmerge.core.formats.dtypes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
