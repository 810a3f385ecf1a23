"""Collected directions become orthonormal, in descending order, with the expert of each."""

from __future__ import annotations

import torch

from eigenmerge.core.numerics.svd.compact_svd import CompactSVD, compact_svd
from eigenmerge.core.numerics.svd.singular_directions import DirectionSet, is_exactly_zero
from eigenmerge.core.numerics.task_vectors import LowRank

from ..conditioning import rounding_bound, squared_condition


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def collected(*svds: CompactSVD) -> DirectionSet:
    directions = DirectionSet()
    for index, svd in enumerate(svds):
        directions.add(svd, index)
    return directions


def test_directions_are_orthonormal_and_sorted() -> None:
    svds = [compact_svd(normal(i, 10, 14), max_directions=3) for i in range(3)]
    spectrum = collected(*svds).orthonormal("kind", (10, 14), 3, keep_zero_values=False)
    condition = squared_condition(torch.cat([svd.left for svd in svds]))
    for vectors in (spectrum.left["left"], spectrum.right):
        error = vectors @ vectors.T - torch.eye(9, dtype=torch.float64)
        assert error.abs().max() < rounding_bound(14, condition)
    assert (spectrum.values[:-1] >= spectrum.values[1:]).all()
    for index, svd in enumerate(svds):
        assert torch.equal(spectrum.values[spectrum.statistics["expert"] == index], svd.values)
    assert spectrum.info["collected"] == 9


def test_directions_that_are_orthonormal_already_stay() -> None:
    svd = compact_svd(normal(0, 6, 8))
    spectrum = collected(svd).orthonormal("kind", (6, 8), 1, keep_zero_values=False)
    torch.testing.assert_close(spectrum.left["left"], svd.left)
    torch.testing.assert_close(spectrum.right, svd.right)


def test_axes_of_zero_experts_turn_the_others_and_have_no_weight() -> None:
    expert = normal(1, 5, 7)
    directions = collected(compact_svd(expert, max_directions=2))
    directions.add_axes(torch.zeros(5, 7, dtype=torch.float64), 2, 1)
    spectrum = directions.orthonormal("kind", (5, 7), 2, keep_zero_values=False)
    assert spectrum.num_directions == 2
    assert spectrum.info["collected"] == 4
    # closest orthonormal rows: half of the turn towards the axes, so no longer the expert's own directions
    assert (spectrum.right - compact_svd(expert, max_directions=2).right).norm() > 1e-2


def test_zero_values_are_kept_on_request_unless_all_are_zero() -> None:
    for keep, expected in ((True, 3), (False, 2)):
        directions = collected(compact_svd(normal(2, 4, 6), max_directions=2))
        directions.add_axes(torch.zeros(4, 6, dtype=torch.float64), 1, 1)
        assert directions.orthonormal("kind", (4, 6), 2, keep_zero_values=keep).num_directions == expected
    directions = DirectionSet()
    directions.add_axes(torch.zeros(4, 6), 2, 0)
    assert directions.orthonormal("kind", (4, 6), 1, keep_zero_values=True).num_directions == 0


def test_only_dense_experts_are_exactly_zero() -> None:
    assert is_exactly_zero(torch.zeros(2, 3))
    assert not is_exactly_zero(torch.tensor([[0.0, 1e-30]]))
    assert not is_exactly_zero(LowRank(torch.zeros(2, 1), torch.zeros(1, 3)))
