"""C, D and S against their definition, and stored and continued with another expert."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.errors import CorruptObjectError, ShapeError
from eigenmerge.core.numerics.interference.operator import InterferenceOperator, accumulate
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

from ..conditioning import rounding_bound


def experts(shape: tuple[int, int], count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def by_definition(vectors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights = [1 / v.square().sum() if v.any() else torch.zeros((), dtype=v.dtype) for v in vectors]
    C = sum(w * v.T @ v for w, v in zip(weights, vectors, strict=True))
    D = sum(w * v @ v.T @ v for w, v in zip(weights, vectors, strict=True))
    return C, D, sum(vectors)


def _assert_equal_sums(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Sums of products of well-scaled numbers: an error of rounding relative to the norm of the sum."""
    tolerance = rounding_bound(max(expected.shape), dtype=expected.dtype) * expected.norm().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(12, 12), (30, 9), (4, 21)])  # the last takes the other order of products for D
def test_sums_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    vectors = experts(shape, 4)
    operator = accumulate(InMemoryTaskVectors(vectors))
    for found, expected in zip((operator.C, operator.D, operator.S), by_definition(vectors), strict=True):
        _assert_equal_sums(found, expected)
    assert operator.num_experts == operator.num_nonzero == 4
    assert operator.C.trace().item() == pytest.approx(4)


def test_the_operator_is_exactly_symmetric() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = [torch.randn((300, 1100), generator=generator) for _ in range(2)]  # more columns than one mirrored block
    operator = accumulate(InMemoryTaskVectors(vectors))
    assert torch.equal(operator.C, operator.C.T)


def test_a_zero_expert_has_weight_zero() -> None:
    vectors = experts((6, 8), 2)
    with_zero = accumulate(InMemoryTaskVectors([vectors[0], torch.zeros_like(vectors[0]), vectors[1]]))
    without = accumulate(InMemoryTaskVectors(vectors))
    assert torch.equal(with_zero.C, without.C)
    assert torch.equal(with_zero.D, without.D)
    assert (with_zero.num_experts, with_zero.num_nonzero) == (3, 2)


def test_factors_give_the_sums_of_their_product() -> None:
    generator = torch.Generator().manual_seed(1)
    factors = [
        LowRank(
            torch.randn((10, rank), generator=generator, dtype=torch.float64),
            torch.randn((rank, 14), generator=generator, dtype=torch.float64),
        )
        for rank in (1, 3, 12)  # 12: more than the rows, so the factor has fewer rows than the rank
    ]
    low_rank = accumulate(InMemoryTaskVectors(factors))
    dense = accumulate(InMemoryTaskVectors([factor.dense() for factor in factors]))
    for name, tensor in dense.to_tensors().items():
        _assert_equal_sums(low_rank.to_tensors()[name], tensor)


def test_an_expert_can_be_added_later() -> None:
    vectors = experts((7, 9), 4)
    kept = accumulate(InMemoryTaskVectors(vectors[:3])).to_tensors()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    later = InterferenceOperator.from_tensors(kept).plus(vectors[3])
    scratch = accumulate(InMemoryTaskVectors(vectors))
    for name, tensor in scratch.to_tensors().items():
        _assert_equal_sums(later.to_tensors()[name], tensor)
        assert torch.equal(kept[name], before[name])  # not changed in place


def test_tiny_task_vectors_do_not_underflow() -> None:
    # squares of 1e-24 are zero in float32; the naive 1 / ||v||^2 is then infinite
    vectors = [v.float() * 1e-24 for v in experts((6, 8), 2)]
    assert vectors[0].square().sum().item() == 0.0
    operator = accumulate(InMemoryTaskVectors(vectors))
    expected = accumulate(InMemoryTaskVectors([v * 1e24 for v in vectors]))
    _assert_equal_sums(operator.C, expected.C)
    _assert_equal_sums(operator.D * 1e24, expected.D)


def test_errors_name_what_does_not_fit() -> None:
    operator = accumulate(InMemoryTaskVectors(experts((4, 5), 1)))
    with pytest.raises(ShapeError, match=r"\(5, 4\).*\(4, 5\)"):
        operator.plus(torch.zeros((5, 4), dtype=torch.float64))
    tensors = operator.to_tensors()
    with pytest.raises(CorruptObjectError, match="lacks D, norms"):
        InterferenceOperator.from_tensors({"C": tensors["C"], "S": tensors["S"]})
    with pytest.raises(ShapeError, match="expected"):
        InterferenceOperator.from_tensors({**tensors, "C": tensors["D"]})
