"""ACE against the published code's steps on dense matrices, dense and LoRA experts."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.method import SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank


def naive_ace(vectors: list[torch.Tensor], epsilon: float = 1e-2, fraction: float = 0.3, threshold: float = 0.3):
    """The steps of the published code on dense matrices."""
    columns = vectors[0].shape[1]
    identity = torch.eye(columns, dtype=vectors[0].dtype)
    traces = torch.stack([(v**2).sum() for v in vectors])
    logs = torch.log(traces + 1e-12)
    heterogeneous = bool(torch.var(logs) / (logs.mean() ** 2 + 1e-12) > threshold)
    covariances, ridges, centered = [], [], []
    for vector in vectors:
        own = vector - vector.mean(dim=0, keepdim=True)
        covariance = own.T @ own
        trace = torch.trace(covariance) + 1e-12
        covariances.append(covariance / trace if heterogeneous else covariance)
        ridges.append(epsilon / trace if heterogeneous else torch.tensor(epsilon, dtype=vector.dtype))
        centered.append(own)
    regularized = [c + e * identity for c, e in zip(covariances, ridges, strict=True)]
    prior = sum(covariances).mean(dim=0, keepdim=True)
    if heterogeneous:
        prior = prior / (traces.mean() + 1e-12)
    merged = sum(x @ c for x, c in zip(centered, regularized, strict=True)) @ torch.linalg.inv(sum(regularized) + prior)
    if not heterogeneous:
        return merged
    mean = sum(regularized) / len(vectors)
    fused = merged + sum(v @ (c - mean) for v, c in zip(vectors, covariances, strict=True))
    left, values, right = torch.linalg.svd(fused, full_matrices=False)
    kept = int(len(values) * fraction)
    return merged + values[:kept].mean() * left[:, :kept] @ right[:kept]


def scaled(vectors: list[torch.Tensor], scales: list[float]) -> list[torch.Tensor]:
    return [scale * vector for scale, vector in zip(scales, vectors, strict=True)]


SIMILAR = [0.005, 0.006, 0.004]
DIFFERENT = [0.01, 0.1, 0.5]  # var / mean^2 of the log traces is far above 0.3


def refined(vectors) -> bool:
    method = get_method("ace")
    assert isinstance(method, SpectralMethod)
    return bool(method.decompose(InMemoryTaskVectors(vectors), method.Parameters()).info["refined"])


@pytest.mark.parametrize(("scales", "is_refined"), [(SIMILAR, False), (DIFFERENT, True)])
@pytest.mark.parametrize("shape", [(24, 18), (18, 24), (20, 20)])
def test_equals_the_published_code(merge, tolerance_of, full_experts, shape, scales, is_refined, relative_error):
    vectors = scaled(full_experts(3, *shape), scales)
    assert refined(vectors) == is_refined
    expected = naive_ace(vectors)
    assert relative_error(merge("ace", vectors), expected) < tolerance_of("ace", vectors)


@pytest.mark.parametrize(("scales", "is_refined"), [(SIMILAR, False), (DIFFERENT, True)])
def test_lora_experts_in_factor_space_equal_the_published_code(
    merge, tolerance_of, lora_experts, scales, is_refined, relative_error
):
    vectors = [
        LowRank(0.3 * scale * v.left, v.right) for scale, v in zip(scales, lora_experts(3, 60, 40, 3), strict=True)
    ]
    dense = [v.dense() for v in vectors]
    assert refined(vectors) == refined(dense) == is_refined
    # The experts have 9 directions; the default 0.3 * 40 = 12 would include null directions.
    expected = naive_ace(dense, fraction=0.2)
    assert relative_error(merge("ace", vectors, rank_fraction=0.2), expected) < tolerance_of(
        "ace", vectors, rank_fraction=0.2
    )


@pytest.mark.parametrize("epsilon", [1e-4, 1.0])
def test_parameters_are_the_published_ones(merge, tolerance_of, full_experts, epsilon, relative_error):
    vectors = scaled(full_experts(3, 15, 12), DIFFERENT)
    expected = naive_ace(vectors, epsilon, 0.5, 0.0)
    options = {"epsilon": epsilon, "rank_fraction": 0.5, "heterogeneity_threshold": 0.0}
    found = merge("ace", vectors, **options)
    assert relative_error(found, expected) < tolerance_of("ace", vectors, **options)


def test_a_zero_expert_contributes_nothing(merge, tolerance_of, full_experts, relative_error):
    vectors = scaled(full_experts(3, 16, 14), SIMILAR)
    zero = torch.zeros(16, 14, dtype=torch.float64)
    expected = merge("ace", vectors)
    assert relative_error(merge("ace", [*vectors, zero]), expected) < tolerance_of("ace", [*vectors, zero])
    # In the published code the trace 1e-12 of the zero expert makes the tasks heterogeneous and its ridge 1e10.
    assert (naive_ace([*vectors, zero]) - expected).norm() > 0.5 * expected.norm()


def test_one_expert(merge, tolerance_of, full_experts, relative_error):
    vector = 0.1 * full_experts(1, 10, 8)[0]
    own = vector - vector.mean(dim=0)
    covariance = own.T @ own
    ridged = covariance + 0.01 * torch.eye(8, dtype=torch.float64)
    expected = own @ ridged @ torch.linalg.inv(ridged + covariance.mean(dim=0))
    assert relative_error(merge("ace", [vector]), expected) < tolerance_of("ace", [vector])
