"""SVD without the null space, and polar factors: accuracy, cuts, and factors against their product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.svd.compact_svd import (
    compact_svd,
    polar_decomposition,
    polar_rows,
    relative_cut,
    rms_singular_value,
    task_vector_norm,
)
from eigenmerge.core.numerics.task_vectors import LowRank

from ..conditioning import rounding_bound, squared_condition


def rows(count: int, length: int, seed: int) -> torch.Tensor:
    """Orthonormal rows, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(length, count, generator=generator, dtype=torch.float64)).Q.T


def prescribed(values: torch.Tensor, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    left, right = rows(len(values), shape[0], seed), rows(len(values), shape[1], seed + 1)
    return (left.T * values.double()) @ right


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (64, 64)])
def test_float32_values_are_as_good_as_a_float64_svd(shape):
    values = torch.logspace(0, -4.5, 40, dtype=torch.float64)
    matrix = prescribed(values, shape).float()
    exact = torch.linalg.svdvals(matrix.double())[:40]
    found = compact_svd(matrix)
    assert found.num_directions == 40
    # values are norms of projections in float64: their error is that of one rounding to float32
    assert ((found.values.double() - exact) / exact).abs().max() < torch.finfo(torch.float32).eps
    tolerance = rounding_bound(80, squared_condition(matrix, 1e-6)) + rounding_bound(1, dtype=torch.float32)
    for vectors in (found.left, found.right):
        assert (vectors @ vectors.T - torch.eye(40)).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_factors", [False, True])
def test_null_space_is_left_out(dtype, as_factors):
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(70, 5, generator=generator, dtype=torch.float64)
    right = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    # the product is rounded to float32, as in a checkpoint, also where the arithmetic is float64
    vector = LowRank(left.to(dtype), right.to(dtype)) if as_factors else (left @ right).float().to(dtype)
    assert torch.linalg.matrix_rank((left @ right).float().double()) == 40  # a cut at the epsilon of float64 keeps all
    found = compact_svd(vector)
    assert found.num_directions == found.rank == 5
    error = ((found.left.T * found.values) @ found.right - (left @ right).to(dtype)).norm()
    assert error < rounding_bound(1, dtype=torch.float32) * (left @ right).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cut_zero_reproduces_the_matrix(dtype):
    matrix = prescribed(torch.logspace(0, -12, 30), (30, 45)).to(dtype)
    found = compact_svd(matrix, cut=0.0)
    residual = ((found.left.T * found.values) @ found.right - matrix).norm() / matrix.norm()
    assert residual < rounding_bound(45, dtype=dtype)


def test_max_directions_keeps_the_leading_ones_and_the_rank():
    matrix = prescribed(torch.linspace(2, 1, 20), (20, 33))
    for vector in (matrix, matrix.float(), LowRank(matrix, torch.eye(33, dtype=torch.float64))):
        found = compact_svd(vector, max_directions=4)
        assert found.left.shape == (4, 20) and found.right.shape == (4, 33) and found.rank == 20
        assert torch.allclose(
            found.values.double(), torch.linspace(2, 1, 20).double()[:4], rtol=rounding_bound(1, dtype=torch.float32)
        )


def test_floor_leaves_out_what_is_small_absolutely():
    matrix = prescribed(torch.tensor([1.0, 0.5, 0.1]), (12, 9))
    assert compact_svd(matrix, floor=0.2).num_directions == 2
    assert compact_svd(matrix, floor=2.0).num_directions == 0


@settings(deadline=None, max_examples=40)
@given(
    num_rows=st.integers(1, 12),
    num_columns=st.integers(1, 12),
    rank=st.integers(0, 5),
    seed=st.integers(0, 10**6),
    single=st.booleans(),
)
def test_factors_and_product_have_the_same_triplets(num_rows, num_columns, rank, seed, single):
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if single else torch.float64
    factors = LowRank(
        torch.randn(num_rows, rank, generator=generator, dtype=dtype),
        torch.randn(rank, num_columns, generator=generator, dtype=dtype),
    )
    dense, factored = compact_svd(factors.dense(), cut=1e-3), compact_svd(factors, cut=1e-3)
    if dense.num_directions == factored.num_directions:  # rounding decides about a value at the cut
        # the product may be smaller than its factors: the rounding of the dense product is relative to those
        tolerance = rounding_bound(12, dtype=dtype) * (factors.left.norm() * factors.right.norm()).item()
        assert torch.allclose(dense.values, factored.values, rtol=0, atol=tolerance)
        values = torch.linalg.svdvals(factors.dense().double())
        num = dense.num_directions
        if num > 0:  # how far the kept space turns depends on the gap to the first value that is left out (Wedin)
            gap = values[num - 1] - (values[num] if num < len(values) else 0.0)
            tolerance *= (values[0] / gap).item()
        product = (factored.left.T * factored.values) @ factored.right
        assert torch.allclose((dense.left.T * dense.values) @ dense.right, product, rtol=0, atol=tolerance)
    assert abs(dense.num_directions - factored.num_directions) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_polar_rows_is_the_polar_factor(dtype):
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(20, 50, generator=generator, dtype=torch.float64)
    vectors /= vectors.norm(dim=1, keepdim=True)
    left, _, right = torch.linalg.svd(vectors, full_matrices=False)
    found = polar_rows(vectors.to(dtype))
    # the Gram matrix is formed in float64; the input's own rounding to float32 is amplified by sigma_1 / sigma_r
    condition = squared_condition(vectors)
    tolerance = rounding_bound(50, condition) + rounding_bound(1, condition**0.5, dtype)
    assert (found.double() - left @ right).abs().max() < tolerance
    assert (found @ found.T - torch.eye(20, dtype=dtype)).abs().max() < 3 * tolerance


def test_the_polar_decomposition_gives_the_rows_again():
    generator = torch.Generator().manual_seed(2)
    vectors = torch.cat([rows(4, 40, 3), torch.randn(5, 40, generator=generator, dtype=torch.float64), rows(4, 40, 3)])
    found, coordinates = polar_decomposition(vectors)
    tolerance = rounding_bound(40, squared_condition(vectors, 1e-6))
    assert torch.equal(found, polar_rows(vectors))
    assert (coordinates @ found - vectors).abs().max() < tolerance
    assert (coordinates - coordinates.T).abs().max() < tolerance
    assert torch.linalg.eigvalsh(coordinates)[0] > -tolerance


def test_polar_rows_of_equal_rows_are_shared():
    unit = rows(4, 30, 2)
    found = polar_rows(torch.cat([unit, unit, unit]))
    assert (found - torch.cat([unit, unit, unit]) / 3**0.5).abs().max() < rounding_bound(30)


def test_polar_rows_of_dependent_rows_do_not_depend_on_a_null_space():
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(9, 4, generator=generator, dtype=torch.float64) @ rows(4, 25, 6)
    vectors /= vectors.norm(dim=1, keepdim=True)
    changed = vectors + 1e-10 * torch.randn(9, 25, generator=generator, dtype=torch.float64)

    def naive(matrix: torch.Tensor) -> torch.Tensor:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        return left @ right

    assert (naive(changed) - naive(vectors)).norm() > 0.1 * naive(vectors).norm()
    # polar factors of rank r change by at most 3 / sigma_r times the change (R.-C. Li, SIAM J. Matrix Anal. 16, 1995)
    bound = 3.0 / torch.linalg.svdvals(vectors)[3] * (changed - vectors).norm()
    assert (polar_rows(changed) - polar_rows(vectors)).norm() < bound


def test_norms_of_factors_need_no_product():
    generator = torch.Generator().manual_seed(8)
    factors = LowRank(torch.randn(30, 3, generator=generator), torch.randn(3, 20, generator=generator))
    assert task_vector_norm(factors) == pytest.approx(
        task_vector_norm(factors.dense()), rel=rounding_bound(1, dtype=torch.float32)
    )
    largest = torch.linalg.svdvals(factors.dense())[0].item()
    assert largest / 3**0.5 <= rms_singular_value(factors) <= largest


def test_relative_cut_grows_slowly():
    assert relative_cut((16, 4)) == pytest.approx(16 * 2**-23)
    assert relative_cut((4096, 4096)) < 1e-4
