"""Mathematical properties of the WUDI family, tested on random experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

from ..conditioning import merge_tolerance, rounding_bound

quick = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 10_000)
ANY_MEMBER: list[tuple[str, dict[str, Any]]] = [
    ("wudi_pinv", {}),
    ("swudi", {"exp_time": 1300, "rank_ratio": 0.65}),
    ("swudi", {"filter": "tikhonov", "rank_ratio": 0.3}),
    ("swudi", {"filter": "landweber", "gamma": 1.5}),
    ("swudi", {"filter": "wiener", "rank_ratio": 0.5}),
    ("swudi_soft", {}),
    ("swudi_a", {}),
    ("swudi_a", {"rank_rule": "entropy_sq", "filter": "exponential"}),
    ("wudi", {"optimizer": "sgd", "learning_rate": 0.01}),
]
members = st.sampled_from(ANY_MEMBER)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def experts(seed: int, count: int, rows: int, columns: int) -> list[torch.Tensor]:
    return list(normal(seed, count, rows, columns))


def orthogonal(seed: int, order: int) -> torch.Tensor:
    return torch.linalg.qr(normal(seed, order, order))[0]


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """`tolerance` is relative to the norm of the expectation."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.norm().item())


@quick
@given(
    seed=seeds, member=members, anchor=st.sampled_from(["sum", "mean"]), dtype=st.sampled_from(["float64", "float32"])
)
def test_one_expert_is_itself(seed: int, member: tuple[str, dict[str, Any]], anchor: str, dtype: str) -> None:
    v = normal(seed, 7, 11).to(getattr(torch, dtype))
    merged = merge_task_vectors([v], member[0], **member[1], anchor=anchor)
    same(merged, v, rounding_bound(11, dtype=v.dtype))  # S Q Q^T: orthogonal transformations, condition 1


@quick
@given(seed=seeds, count=st.integers(2, 5), exp_time=st.floats(0.1, 1000))
def test_identical_experts(seed: int, count: int, exp_time: float) -> None:
    v = normal(seed, 5, 8)
    copies = [v] * count
    same(merge_task_vectors(copies, "wudi_pinv"), v, merge_tolerance("wudi_pinv", copies))
    tolerance = merge_tolerance("swudi", copies, exp_time=exp_time)
    same(merge_task_vectors(copies, "swudi", exp_time=exp_time, anchor="mean"), v, tolerance)
    values, Q = torch.linalg.eigh(count * v.T @ v / v.square().sum())
    passed = 1 - torch.exp(-exp_time * values.clamp(min=0))
    same(
        merge_task_vectors(copies, "swudi", exp_time=exp_time), v @ Q * (count - (count - 1) * passed) @ Q.T, tolerance
    )


@quick
@given(seed=seeds, member=members)
def test_orthogonal_row_spaces_do_not_interfere(seed: int, member: tuple[str, dict[str, Any]]) -> None:
    rows = orthogonal(seed, 12).split(3)
    vectors = [normal(seed + i, 6, 3) @ basis for i, basis in enumerate(rows)]
    tolerance = merge_tolerance(member[0], vectors, **member[1])
    same(merge_task_vectors(vectors, member[0], **member[1]), sum(vectors), tolerance)


@quick
@given(seed=seeds, ranks=st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_lora_experts_of_small_total_rank_do_not_interfere(seed: int, ranks: list[int]) -> None:
    columns = sum(ranks) + 3
    factors = [LowRank(normal(seed + i, 9, r), normal(seed - i, r, columns)) for i, r in enumerate(ranks)]
    merged = merge_task_vectors(factors, "wudi_pinv")
    tolerance = merge_tolerance("wudi_pinv", factors)
    for factor in factors:
        v = factor.dense()
        assert ((merged - v) @ v.T).norm() < tolerance * merged.norm() * v.norm()


@quick
@given(seed=seeds, cosine=st.floats(-0.99, 0.99))
def test_rank_one_pair(seed: int, cosine: float) -> None:
    a, b = orthogonal(seed, 6)[:2]
    b = cosine * a + (1 - cosine**2) ** 0.5 * b
    vectors = [torch.outer(normal(seed + i, 4), direction) for i, direction in enumerate((a, b))]
    for route in ("gram", "row_space"):
        spectrum = decompose_interference(InMemoryTaskVectors(vectors), route=route)  # pyright: ignore[reportArgumentType]
        expected = torch.tensor([1 + abs(cosine), 1 - abs(cosine)], dtype=torch.float64)
        same(spectrum.values[:2], expected, rounding_bound(6))  # eigenvalues of symmetric matrices: condition 1


@quick
@given(seed=seeds, factor=st.floats(0.01, 100))
def test_scaling_one_expert(seed: int, factor: float) -> None:
    vectors = experts(seed, 3, 5, 7)
    scaled = [vectors[0] * factor, *vectors[1:]]
    before, after = (decompose_interference(InMemoryTaskVectors(vs), route="gram") for vs in (vectors, scaled))
    same(after.values, before.values, rounding_bound(7))
    # C does not change, so the result is linear in the factor: f(scaled) - f(without) = factor (f(plain) - f(without)).
    plain, more = (merge_task_vectors(vs, "swudi") for vs in (vectors, scaled))
    twice = merge_task_vectors([vectors[0] * (2 * factor - 1), *vectors[1:]], "swudi") if factor > 0.5 else None
    if twice is not None:
        tolerance = merge_tolerance("swudi", scaled) * (twice.norm() + plain.norm() + 2 * more.norm())  # differences
        assert (twice - plain - 2 * (more - plain)).norm() < tolerance


@quick
@given(seed=seeds, member=members, order=st.permutations(range(4)))
def test_order_does_not_matter(seed: int, member: tuple[str, dict[str, Any]], order: list[int]) -> None:
    vectors = experts(seed, 4, 6, 9)
    permuted = [vectors[i] for i in order]
    expected = merge_task_vectors(vectors, member[0], **member[1])
    same(
        merge_task_vectors(permuted, member[0], **member[1]),
        expected,
        merge_tolerance(member[0], vectors, **member[1]),
    )


@quick
@given(seed=seeds, member=members)
def test_rotations_rotate_the_result(seed: int, member: tuple[str, dict[str, Any]]) -> None:
    vectors = experts(seed, 3, 5, 8)
    rows, columns = orthogonal(seed + 1, 5), orthogonal(seed + 2, 8)
    turned = merge_task_vectors([rows @ v @ columns for v in vectors], member[0], **member[1])
    expected = rows @ merge_task_vectors(vectors, member[0], **member[1]) @ columns
    same(turned, expected, merge_tolerance(member[0], vectors, **member[1]))


@quick
@given(seed=seeds, member=members, route=st.sampled_from(["gram", "row_space"]))
def test_the_pseudo_inverse_minimizes_the_interference(
    seed: int, member: tuple[str, dict[str, Any]], route: str
) -> None:
    vectors = experts(seed, 3, 5, 8)

    def interference(theta: torch.Tensor) -> float:
        return sum(float(((theta - v) @ v.T).square().sum() / v.square().sum()) for v in vectors)

    best = interference(merge_task_vectors(vectors, "wudi_pinv"))
    other = interference(merge_task_vectors(vectors, member[0], **member[1]))
    assert best <= other * (1 + merge_tolerance("wudi_pinv", vectors))


@pytest.mark.parametrize("name", ["swudi", "swudi_a", "swudi_soft", "wudi_pinv"])
def test_trap_10_mean_anchor_is_not_a_scaled_sum(name: str) -> None:
    vectors = experts(3, 4, 6, 9)
    extra = {"rank_rule": "stable_rank"} if name == "swudi_a" else {}
    mean = merge_task_vectors(vectors, name, anchor="mean", **extra)
    scaled = merge_task_vectors(vectors, name, anchor="sum", scale=1 / 4, **extra)
    assert (mean - scaled).norm() > 0.1 * mean.norm()
