"""Dequantizing: every layout of scales, for complete tensors and for some of their rows."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.listing import TensorSource
from eigenmerge.core.storage.checkpoints.float8_values import dequantize


def source(shape: tuple[int, ...], scale: tuple[int, ...]) -> TensorSource:
    return TensorSource("x", 0, 0, "F8_E4M3", shape, TensorSource("x", 0, 0, "F32", scale))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scale_shape", [(), (1,), (300,), (300, 1), (3, 2)])
def test_scales(scale_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, scale = torch.randn(300, 200).to(dtype), torch.rand(scale_shape) + 0.5
    full = scale
    if scale_shape == (300,):
        full = scale.reshape(300, 1)
    elif scale_shape == (3, 2):
        full = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :200]
    expected = weight.float() * full
    described = source((300, 200), scale_shape)
    assert torch.equal(dequantize(weight, scale, described), expected)
    assert torch.equal(dequantize(weight[100:270], scale, described, (100, 270)), expected[100:270])


def test_scales_per_row_of_a_stack() -> None:
    weight, scale = torch.randn(5, 3, 2).to(torch.float8_e4m3fn), torch.rand(5)
    expected = weight.float() * scale.reshape(5, 1, 1)
    assert torch.equal(dequantize(weight, scale, source((5, 3, 2), (5,))), expected)


@pytest.mark.parametrize("scale_shape", [(7, 7), (200,), (2, 3), (300, 200)])
def test_a_scale_of_another_shape(scale_shape: tuple[int, ...]) -> None:
    weight = torch.ones(300, 200).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=r"shape \(300, 200\) has a scale of shape .* expected one number"):
        dequantize(weight, torch.ones(scale_shape), source((300, 200), scale_shape))
