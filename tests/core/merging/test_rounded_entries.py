"""Entries of a task vector that are nothing but the rounding of the expert's stored dtype."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.merging.rounded_entries import clear_rounded_entries

COARSE = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("shape", [(), (7,), (5, 9), (3, 4, 5), (0, 4), (2000, 300)])
def test_an_expert_that_did_not_change_has_no_task_vector(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    base = draw(*shape)
    full = base.to(dtype).float()
    delta = full - base
    clear_rounded_entries(delta, full, base, dtype)
    assert not delta.any()


@pytest.mark.parametrize("dtype", COARSE)
def test_entries_that_changed_are_kept(dtype: torch.dtype) -> None:
    base = draw(8, 16)
    expert = base.clone()
    expert[2:5] = 2.5 * expert[2:5]
    full = expert.to(dtype).float()
    delta = full - base
    before = delta.clone()
    clear_rounded_entries(delta, full, base, dtype)
    assert torch.equal(delta[2:5], before[2:5])
    assert not delta[:2].any() and not delta[5:].any()


@pytest.mark.parametrize("working", [torch.float32, torch.bfloat16])
def test_float8_with_a_scale_whichever_dtype_the_quantizer_divided_in(working: torch.dtype) -> None:
    base = draw(64, 32)
    scale = (base.abs().amax(dim=1, keepdim=True) / 448).float()
    stored = (base.to(working) / scale.to(working)).to(torch.float8_e4m3fn)
    full = stored.float() * scale.expand_as(base)
    if working is torch.bfloat16:
        full = stored.float() * scale.to(working).float()
        scale = scale.to(working).float()
    full[3] *= 2.0
    delta = full - base
    clear_rounded_entries(delta, full, base, torch.float8_e4m3fn, scale.expand_as(base).contiguous())
    assert delta[3].count_nonzero() > 16
    delta[3] = 0.0
    assert not delta.any()
