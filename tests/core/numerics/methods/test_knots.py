"""KnOTS against the published code, dense and LoRA experts."""

from __future__ import annotations

import pytest
import torch

from ..elementwise.test_sign_consensus import naive_ties


def naive_knots(vectors: list[torch.Tensor], density: float) -> torch.Tensor:
    left, values, right = torch.linalg.svd(torch.cat(vectors, dim=1), full_matrices=False)
    keep = values > 1e-5
    aligned = (torch.diag(values[keep]) @ right[keep]).split(vectors[0].shape[1], dim=1)
    merged = naive_ties(torch.stack([part.reshape(-1) for part in aligned]), density)
    return left[:, keep] @ merged.reshape(aligned[0].shape)


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
