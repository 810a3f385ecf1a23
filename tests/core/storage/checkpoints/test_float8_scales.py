"""Pairing float8 weights with their scales by name."""

from __future__ import annotations

import pytest

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.storage.checkpoints.float8_scales import pair_scales


def source(dtype: str, start: int = 0) -> TensorSource:
    return TensorSource("x", start, start + 4, dtype, (4,))


@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_a_scale_becomes_part_of_its_weight(dtype: str, suffix: str) -> None:
    scale = source("F32", 100)
    paired = pair_scales({"a.weight": source(dtype), f"a.weight{suffix}": scale, "norm": source("BF16")})
    assert set(paired) == {"a.weight", "norm"}
    assert paired["a.weight"].scale == scale
    assert paired["norm"].scale is None


@pytest.mark.parametrize("dtype", ["BF16", "U8", "F8_E8M0", "F8_E4M3FNUZ"])
def test_tensors_of_other_dtypes_keep_their_neighbors(dtype: str) -> None:
    """They are copied as they are stored, so their scales must be copied too."""
    tensors = {"a.weight": source(dtype), "a.weight_scale": source("F32")}
    assert pair_scales(tensors) == tensors


def test_a_scale_without_a_weight_and_a_weight_without_a_scale() -> None:
    tensors = {"a.weight": source("F8_E4M3"), "b.weight_scale": source("F32")}
    assert pair_scales(tensors) == tensors
