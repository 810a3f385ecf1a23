"""Sums that stay factors while these are smaller, and their spectrum."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import Factors, apply_factors
from eigenmerge.core.numerics.svd.compact_svd import compact_svd
from eigenmerge.core.numerics.svd.delta_sum import DeltaSum, delta_spectrum, sum_task_vectors
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

from ..conditioning import rounding_bound


def factors(rows: int, columns: int, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(rows, rank, generator=generator, dtype=torch.float64),
        torch.randn(rank, columns, generator=generator, dtype=torch.float64),
    )


def test_low_rank_terms_stay_factors_while_these_are_smaller():
    total = DeltaSum((40, 40))
    expected = torch.zeros(40, 40, dtype=torch.float64)
    for seed in range(9):  # 9 * 2 * 80 elements: below 1600
        total.add(factors(40, 40, 2, seed), 0.5)
        expected += 0.5 * factors(40, 40, 2, seed).dense()
    stacked = total.total()
    assert isinstance(stacked, LowRank) and stacked.rank == 18
    assert torch.allclose(stacked.dense(), expected)


def test_the_sum_turns_dense_when_the_stack_would_be_larger():
    total = DeltaSum((40, 40))
    for seed in range(12):
        total.add(factors(40, 40, 2, seed))
    dense = total.total()
    assert not isinstance(dense, LowRank)
    assert torch.allclose(dense, sum(factors(40, 40, 2, seed).dense() for seed in range(12)))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_dense_and_low_rank_terms_mix(order):
    terms = [factors(30, 20, 1, 0), torch.ones(30, 20, dtype=torch.float64), factors(30, 20, 2, 1)]
    total = DeltaSum((30, 20))
    for index in order:
        total.add(terms[index], 2.0)
    expected = 2 * (terms[0].dense() + terms[1] + terms[2].dense())  # type: ignore[union-attr]
    found = total.total()
    assert isinstance(found, torch.Tensor)
    assert torch.allclose(found, expected)


def test_the_rest_of_a_cancellation_is_no_direction():
    one = factors(60, 50, 3, 1)
    mixing = torch.tensor([[0.3, 1.0, 0.2], [0.5, -0.1, 1.0], [1.0, 0.4, 0.6]], dtype=torch.float64)
    # other factors of the same product, up to rounding
    other = LowRank((-one.left @ mixing).float(), torch.linalg.inv(mixing).mm(one.right).float())
    total, noise_level, noise = sum_task_vectors(InMemoryTaskVectors([one.to("cpu", torch.float32), other]))
    assert noise is None
    assert compact_svd(total).num_directions > 0  # relative to the sum itself, rounding is above the cut
    assert compact_svd(total, floor=noise_level).num_directions == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_delta_spectrum_reproduces_the_delta(dtype):
    delta = factors(25, 35, 6, 4).dense().to(dtype)
    spectrum = delta_spectrum("kind", delta, 3, {"note": 1})
    assert spectrum.num_directions == 6 and spectrum.info["note"] == 1
    rebuilt = apply_factors(spectrum, Factors({"left": spectrum.values}, 6))
    assert (rebuilt - delta).norm() / delta.norm() < rounding_bound(35, dtype=dtype)
