"""KnOTS and its TIES against the published code, dense and LoRA experts."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.elementwise.sign_consensus import trim_elect_average

from ..conditioning import rounding_bound


def naive_ties(rows: torch.Tensor, density: float) -> torch.Tensor:
    """masking_ops.py of the published code, on (N, entries)."""
    magnitudes = rows.abs()
    mask = torch.ones_like(rows, dtype=torch.bool)
    if density < 1:
        kth = rows.shape[1] - int(rows.shape[1] * density)
        mask = magnitudes >= magnitudes.kthvalue(kth, dim=1, keepdim=True).values
    pruned = rows * mask
    signs = torch.sign(pruned.sum(dim=0))
    signs[signs == 0] = torch.sign(signs.sum())
    agrees = torch.where(signs > 0, pruned > 0, pruned < 0) & mask
    return (rows * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def naive_knots(vectors: list[torch.Tensor], density: float) -> torch.Tensor:
    left, values, right = torch.linalg.svd(torch.cat(vectors, dim=1), full_matrices=False)
    keep = values > 1e-5
    aligned = (torch.diag(values[keep]) @ right[keep]).split(vectors[0].shape[1], dim=1)
    merged = naive_ties(torch.stack([part.reshape(-1) for part in aligned]), density)
    return left[:, keep] @ merged.reshape(aligned[0].shape)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.999, 1.0])
def test_ties_equals_the_published_code(density):
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(13, 21, generator=generator, dtype=torch.float64) for _ in range(5)]
    expected = naive_ties(torch.stack([part.reshape(-1) for part in parts]), density).reshape(13, 21)
    assert torch.allclose(trim_elect_average(parts, density), expected, rtol=rounding_bound(len(parts)))


def test_ties_where_votes_cancel_takes_the_majority():
    rows = torch.tensor([[1.0, 2.0, 3.0, -1.0], [-1.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
    assert torch.equal(trim_elect_average(list(rows), 1.0), naive_ties(rows, 1.0))
    assert trim_elect_average(list(rows), 1.0)[0] == 1.0


@pytest.mark.parametrize("density", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("shape", [(20, 27), (27, 20)])
def test_equals_the_published_formula(merge, tolerance_of, full_experts, shape, density, relative_error):
    vectors = full_experts(4, *shape)
    expected = naive_knots(vectors, density)
    assert relative_error(merge("knots", vectors, density=density), expected) < tolerance_of(
        "knots", vectors, density=density
    )


def test_lora_experts_equal_the_published_formula(merge, tolerance_of, lora_experts, relative_error):
    vectors = lora_experts(4, 50, 60, 3)
    expected = naive_knots([v.dense() for v in vectors], 0.2)
    assert relative_error(merge("knots", vectors, density=0.2), expected) < tolerance_of("knots", vectors, density=0.2)


def test_one_expert_without_trimming_is_returned(merge, tolerance_of, full_experts, relative_error):
    vector = full_experts(1, 15, 18)[0]
    assert relative_error(merge("knots", [vector], density=1.0), vector) < tolerance_of("knots", [vector], density=1.0)
