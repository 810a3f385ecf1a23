"""Norms that float32 arithmetic gets wrong."""

from __future__ import annotations

import torch

from eigenmerge.core.numerics.energies import frobenius_norm, row_energies

from .conditioning import rounding_bound


def test_many_elements_are_summed_in_float64() -> None:
    matrix = torch.full((3000, 4000), 0.1)
    exact = (0.1**2 * matrix.numel()) ** 0.5
    naive = torch.linalg.vector_norm(matrix).item()
    assert abs(naive - exact) > 1e-4 * exact  # the error of float32 sums
    assert abs(frobenius_norm(matrix) - exact) < torch.finfo(torch.float32).eps * exact  # 0.1 is rounded to float32


def test_squares_do_not_underflow() -> None:
    matrix = torch.full((3, 5), 1e-30)
    torch.testing.assert_close(
        row_energies(matrix),
        torch.full((3,), 5e-60, dtype=torch.float64),
        rtol=rounding_bound(1, dtype=torch.float32),
        atol=0,
    )


def test_blocks_do_not_change_the_result() -> None:
    matrix = torch.randn((700, 1000), generator=torch.Generator().manual_seed(0))  # several blocks
    torch.testing.assert_close(row_energies(matrix), matrix.double().square().sum(dim=1))
    assert row_energies(torch.zeros((4, 0))).tolist() == [0, 0, 0, 0]
    assert frobenius_norm(torch.zeros((0, 4))) == 0.0
