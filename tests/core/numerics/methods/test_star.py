"""STAR against the paper's formula."""

from __future__ import annotations

import pytest
import torch


def naive_star(vectors: list[torch.Tensor], eta: float) -> torch.Tensor:
    """Truncate each expert to eta% of its nuclear norm, rescale, average."""
    merged = torch.zeros_like(vectors[0])
    for vector in vectors:
        left, values, right = torch.linalg.svd(vector, full_matrices=False)
        kept = 1
        while values[:kept].sum() < eta / 100 * values.sum():
            kept += 1
        rescaled = values[:kept] * values.sum() / values[:kept].sum()
        merged += left[:, :kept] @ torch.diag(rescaled) @ right[:kept] / len(vectors)
    return merged


@pytest.mark.parametrize("eta", [5.0, 40.0, 77.0])
@pytest.mark.parametrize("shape", [(17, 26), (26, 17)])
def test_equals_the_formula_of_the_paper(merge, tolerance_of, full_experts, shape, eta, relative_error):
    vectors = full_experts(3, *shape)
    expected = naive_star(vectors, eta)
    assert relative_error(merge("star", vectors, eta=eta), expected) < tolerance_of("star", vectors, eta=eta)


def test_everything_kept_is_the_mean(merge, tolerance_of, full_experts, relative_error):
    vectors = full_experts(4, 15, 12)
    mean = sum(vectors) / 4
    assert relative_error(merge("star", vectors, eta=100.0), mean) < tolerance_of("star", vectors, eta=100.0)


def test_one_expert_keeps_its_nuclear_norm(merge, tolerance_of, full_experts):
    vector = full_experts(1, 20, 20)[0]
    result = merge("star", [vector], eta=30.0)
    expected = torch.linalg.matrix_norm(vector, "nuc").item()
    assert torch.linalg.matrix_norm(result, "nuc").item() == pytest.approx(
        expected, rel=tolerance_of("star", [vector], eta=30.0)
    )
    assert torch.linalg.matrix_rank(result) < 20
