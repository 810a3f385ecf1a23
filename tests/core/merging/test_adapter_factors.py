"""An adapter's factors: the best of their rank, the error that is reported, zeros where there is nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.merging.adapter_factors import stored_factors, zero_factors
from eigenmerge.core.numerics.task_vectors import LowRank
from eigenmerge.core.planning.plan import AdapterFactors


def draw(rows: int, columns: int, rank: int, seed: int, dtype: torch.dtype = torch.float64) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator, dtype=dtype)
    return LowRank(left, torch.randn(rank, columns, generator=generator, dtype=dtype))


def target(rank: int, transposed: bool = False) -> AdapterFactors:
    return AdapterFactors(rank, "A", "B", None, transposed)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_the_best_approximation_and_its_error(
    rows: int, columns: int, rank: int, kept: int, seed: int, transposed: bool
) -> None:
    delta = draw(rows, columns, rank, seed)
    stored = stored_factors(delta, target(kept, transposed), torch.float64)
    assert stored.down.shape == (kept, rows if transposed else columns)
    assert stored.up.shape == (columns if transposed else rows, kept)
    made = stored.up @ stored.down
    made = made.T if transposed else made
    full = delta.dense()
    values = torch.linalg.svdvals(full)
    best = float(values[kept:].norm())
    assert float((made - full).norm()) == pytest.approx(best, abs=1e-9 * float(values[0]))
    assert stored.truncation_error == pytest.approx(best / float(values.norm()), abs=1e-9)


def test_cutting_later_is_best_again_and_both_factors_share_the_scale() -> None:
    delta = draw(20, 30, 8, 0)
    stored = stored_factors(delta, target(8), torch.float64)
    values = torch.linalg.svdvals(delta.dense())
    rest = delta.dense() - stored.up[:, :3] @ stored.down[:3]
    torch.testing.assert_close(rest.norm(), values[3:].norm())
    torch.testing.assert_close(stored.up.norm(dim=0), stored.down.norm(dim=1))
    torch.testing.assert_close(stored.up.norm(dim=0).square(), values[:8])


def test_a_lower_rank_is_filled_up_with_zeros() -> None:
    one = draw(10, 12, 2, 1, torch.float32)
    twice = LowRank(torch.cat([one.left, one.left], dim=1), torch.cat([one.right, one.right]))
    stored = stored_factors(twice, target(4), torch.float32)
    assert stored.down.shape == (4, 12) and stored.truncation_error == 0.0
    torch.testing.assert_close(stored.up @ stored.down, 2 * one.dense(), rtol=1e-5, atol=1e-5)
    assert stored.down[2:].norm() < 1e-3 * stored.down.norm()


def test_nothing_is_zeros() -> None:
    stored = zero_factors((4, 6), target(2), torch.float32)
    assert not stored.down.any() and not stored.up.any() and stored.truncation_error == 0.0


@pytest.mark.parametrize("kept", [3, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_error_includes_the_rounding_of_the_stored_factors(kept: int, dtype: torch.dtype) -> None:
    delta = draw(40, 30, 8, 5)
    stored = stored_factors(delta, target(kept), dtype)
    assert stored.up.dtype == stored.down.dtype == dtype
    full = delta.dense()
    expected = (stored.up.double() @ stored.down.double() - full).norm() / full.norm()
    assert stored.error == pytest.approx(float(expected), rel=1e-6)
    assert stored.error > stored.truncation_error


def test_a_delta_of_zero_has_no_error() -> None:
    assert zero_factors((4, 6), target(2), torch.bfloat16).error == 0.0
