"""Conversion between safetensors dtype names and torch dtypes."""

from __future__ import annotations

import torch

from ..errors import CheckpointError
from ..formats.dtypes import DTYPES, safetensors_name


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype name.

    Raises
    ------
    CheckpointError : torch, or the installed version of it, has no such dtype
    """
    known = DTYPES.get(name)
    dtype = getattr(torch, known.torch_name, None) if known is not None and known.torch_name is not None else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"dtype {name} has no torch equivalent; convert the checkpoint to BF16 first")
    return dtype


def safetensors_dtype(dtype: torch.dtype) -> str:
    """Return the safetensors name of a torch dtype."""
    return safetensors_name(str(dtype).removeprefix("torch."))
