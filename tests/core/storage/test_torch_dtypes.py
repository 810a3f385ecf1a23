"""Conversion of dtype names to torch and back."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.formats.dtypes import DTYPES
from eigenmerge.core.storage.torch_dtypes import safetensors_dtype, torch_dtype


def test_there_and_back() -> None:
    assert torch_dtype("BF16") is torch.bfloat16
    assert torch_dtype("F8_E4M3") is torch.float8_e4m3fn
    names = [dtype.name for dtype in DTYPES.values() if hasattr(torch, dtype.torch_name or "")]
    assert len(names) >= 15
    assert [safetensors_dtype(torch_dtype(name)) for name in names] == names


@pytest.mark.parametrize("name", ["F4", "F6_E2M3", "F33", ""])
def test_a_dtype_that_torch_does_not_have(name: str) -> None:
    shown = f"dtype {name} has".replace("  ", " ")
    with pytest.raises(CheckpointError, match=f"{shown} no torch equivalent"):
        torch_dtype(name)
