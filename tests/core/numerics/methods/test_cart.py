"""CART against the paper's formula, dense and LoRA experts."""

from __future__ import annotations

import pytest
import torch

from ..conditioning import rounding_bound


def naive_cart(vectors: list[torch.Tensor], ratio: float, coefficient: float) -> torch.Tensor:
    mean = sum(vectors) / len(vectors)
    rank = max(1, int(ratio * min(mean.shape)))
    merged = mean.clone()
    for vector in vectors:
        left, values, right = torch.linalg.svd(vector - mean, full_matrices=False)
        merged += coefficient * (left[:, :rank] * values[:rank]) @ right[:rank]
    return merged


@pytest.mark.parametrize(("ratio", "coefficient"), [(0.08, 1.0), (0.3, 2.0), (0.01, 0.5)])
@pytest.mark.parametrize("shape", [(19, 28), (28, 19)])
def test_equals_the_formula_of_the_paper(merge, tolerance_of, full_experts, shape, ratio, coefficient, relative_error):
    vectors = full_experts(4, *shape)
    expected = naive_cart(vectors, ratio, coefficient)
    options = {"rank_ratio": ratio, "coefficient": coefficient}
    found = merge("cart", vectors, **options)
    assert relative_error(found, expected) < tolerance_of("cart", vectors, **options)


def test_lora_experts_on_their_cores_equal_the_formula(merge, tolerance_of, lora_experts, relative_error):
    vectors = lora_experts(3, 80, 60, 3)
    expected = naive_cart([v.dense() for v in vectors], 0.05, 1.5)  # rank 3 of the 12 of a centered expert
    options = {"rank_ratio": 0.05, "coefficient": 1.5}
    found = merge("cart", vectors, **options)
    assert relative_error(found, expected) < tolerance_of("cart", vectors, **options)


def test_full_rank_leaves_the_mean(merge, tolerance_of, full_experts, relative_error):
    vectors = full_experts(3, 10, 14)
    mean = sum(vectors) / 3
    assert relative_error(merge("cart", vectors, rank_ratio=1.0, coefficient=5.0), mean) < tolerance_of(
        "cart", vectors, rank_ratio=1.0, coefficient=5.0
    )


def test_identical_experts_give_that_expert(merge, full_experts, relative_error):
    vector = full_experts(1, 12, 12, dtype=torch.float32)[0]
    # the rounding of v - mean is not multiplied by the coefficient
    assert relative_error(merge("cart", [vector] * 3, coefficient=100.0), vector) < rounding_bound(
        1, dtype=torch.float32
    )
