"""The typed functions of torch.linalg: shapes, orders and orientations are those of their docstrings."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics import linear_algebra

from .conditioning import rounding_bound


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_decompositions_give_the_matrix_again(shape: tuple[int, int]) -> None:
    matrix, small = normal(*shape), min(shape)
    left, values, right = linear_algebra.svd(matrix)
    assert (left.shape, right.shape) == ((shape[0], small), (small, shape[1]))
    assert (values[:-1] >= values[1:]).all()
    q, r = linear_algebra.qr(matrix)
    assert (q.shape, r.shape) == ((shape[0], small), (small, shape[1]))
    for rebuilt in ((left * values) @ right, q @ r):
        assert (rebuilt - matrix).norm() < rounding_bound(5) * matrix.norm()


def test_eigenvalues_ascend() -> None:
    matrix = normal(4, 4) + normal(4, 4).T
    values, vectors = linear_algebra.eigh(matrix)
    assert (values[:-1] <= values[1:]).all()
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix)


def test_norms_and_solve() -> None:
    matrix, product = normal(3, 3), normal(2, 3, seed=1)
    torch.testing.assert_close(linear_algebra.solve_on_right(matrix, product) @ matrix, product)
    tensor = torch.tensor([[3.0, 4.0], [0.0, 12.0]])
    assert linear_algebra.vector_norms(tensor, dim=1).tolist() == [5.0, 12.0]
    assert linear_algebra.vector_norms(tensor, dim=0, keepdim=True).shape == (1, 2)
    assert linear_algebra.frobenius(tensor) == 13.0
    # the squares underflow in float32
    assert linear_algebra.frobenius(torch.full((4,), 1e-30), torch.float64) == pytest.approx(2e-30)
