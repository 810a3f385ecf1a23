"""Core Space against the published code: cores, merges in the core, exactness for LoRA experts."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.task_vectors import LowRank


def naive_cores(vectors: list[LowRank]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """get_core_matrices of the published code: reference bases by SVD of the stacked factors."""
    right = torch.linalg.svd(torch.cat([v.right for v in vectors]), full_matrices=False).Vh
    left = torch.linalg.svd(torch.cat([v.left for v in vectors], dim=1), full_matrices=False).U
    return [left.T @ v.left @ v.right @ right.T for v in vectors], left, right


def naive_merge(cores: list[torch.Tensor], how: str) -> torch.Tensor:
    if how == "sum":
        return sum(cores)
    if how == "mean":
        return sum(cores) / len(cores)
    if how == "tsv_m":
        per_expert = min(cores[0].shape) // len(cores)
        triplets = [torch.linalg.svd(core, full_matrices=False) for core in cores]

        def polar(matrix: torch.Tensor) -> torch.Tensor:
            u, _, v = torch.linalg.svd(matrix, full_matrices=False)
            return u @ v

        left = polar(torch.cat([u[:, :per_expert] for u, _, _ in triplets], dim=1))
        right = polar(torch.cat([v[:per_expert] for _, _, v in triplets]))
        return left @ torch.diag(torch.cat([s[:per_expert] for _, s, _ in triplets])) @ right
    if how == "cart":
        mean = sum(cores) / len(cores)
        merged = mean.clone()
        for core in cores:
            u, s, v = torch.linalg.svd(core - mean, full_matrices=False)
            merged += 0.1 * (u[:, :2] * s[:2]) @ v[:2]
        return merged
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["sum", "mean", "tsv_m", "cart"])
@pytest.mark.parametrize("isotropize", [False, True])
def test_equals_the_published_formula(merge, tolerance_of, lora_experts, how, isotropize):
    vectors = lora_experts(4, 60, 50, 3)
    cores, left, right = naive_cores(vectors)
    core = naive_merge(cores, how)
    if isotropize:
        u, s, v = torch.linalg.svd(core)
        core = s.mean() * u @ v
    options = {"merge": how, "isotropize": isotropize, "rank_ratio": 2 / 12}
    found = merge("core_space", vectors, **options)
    assert (found - left @ core @ right).norm() < tolerance_of("core_space", vectors, **options) * found.norm()


def test_ties_in_core_space_equals_the_published_formula(merge, tolerance_of, lora_experts, relative_error):
    vectors = lora_experts(3, 40, 44, 4)
    cores, left, right = naive_cores(vectors)
    stacked = torch.stack([core.reshape(-1) for core in cores])
    magnitudes = stacked.abs()
    kth = stacked.shape[1] - int(stacked.shape[1] * 0.3)
    pruned = stacked * (magnitudes >= magnitudes.kthvalue(kth, dim=1, keepdim=True).values)
    agrees = torch.where(pruned.sum(dim=0) > 0, pruned > 0, pruned < 0)
    core = ((pruned * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)).reshape(12, 12)
    expected = left @ core @ right
    assert relative_error(merge("core_space", vectors, merge="ties", density=0.3), expected) < tolerance_of(
        "core_space", vectors, merge="ties", density=0.3
    )


def test_sum_in_core_space_is_task_arithmetic(merge, tolerance_of, lora_experts, relative_error):
    vectors = lora_experts(5, 70, 40, 2)
    expected = sum(v.dense() for v in vectors)
    assert relative_error(merge("core_space", vectors, merge="sum"), expected) < tolerance_of(
        "core_space", vectors, merge="sum"
    )


def test_isotropic_sum_in_core_space_is_iso_c(merge, tolerance_of, lora_experts, relative_error):
    vectors = lora_experts(4, 48, 52, 3)
    expected = merge("iso_c", vectors)
    found = merge("core_space", vectors, merge="sum", isotropize=True)
    assert relative_error(found, expected) < tolerance_of("iso_c", vectors)
