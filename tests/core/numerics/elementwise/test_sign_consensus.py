"""TIES of KnOTS and Core Space: equal to the published code, whatever the order of the experts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.elementwise.sign_consensus import trim_elect_average

from ..conditioning import rounding_bound


def naive_ties(rows: torch.Tensor, density: float) -> torch.Tensor:
    """masking_ops.py of the published code, on (N, entries)."""
    magnitudes = rows.abs()
    mask = torch.ones_like(rows, dtype=torch.bool)
    if density < 1:
        kth = rows.shape[1] - int(rows.shape[1] * density)
        mask = magnitudes >= magnitudes.kthvalue(kth, dim=1, keepdim=True).values
    pruned = rows * mask
    signs = torch.sign(pruned.sum(dim=0))
    signs[signs == 0] = torch.sign(signs.sum())
    agrees = torch.where(signs > 0, pruned > 0, pruned < 0) & mask
    return (rows * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.999, 1.0])
def test_ties_equals_the_published_code(density):
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(13, 21, generator=generator, dtype=torch.float64) for _ in range(5)]
    expected = naive_ties(torch.stack([part.reshape(-1) for part in parts]), density).reshape(13, 21)
    assert torch.allclose(trim_elect_average(parts, density), expected, rtol=rounding_bound(len(parts)))


def test_ties_where_votes_cancel_takes_the_majority():
    rows = torch.tensor([[1.0, 2.0, 3.0, -1.0], [-1.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
    assert torch.equal(trim_elect_average(list(rows), 1.0), naive_ties(rows, 1.0))
    assert trim_elect_average(list(rows), 1.0)[0] == 1.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5), density=st.sampled_from([0.1, 0.4, 1.0]))
def test_order_and_sign(seed: int, count: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # integers: sums are exact, and magnitudes at the threshold are often equal
    parts = [torch.randint(-3, 4, (4, 5), generator=generator).double() for _ in range(count)]
    merged = trim_elect_average(parts, density)
    assert torch.equal(trim_elect_average(parts[::-1], density), merged)
    # a mean of kept entries lies between the extreme entries
    stacked = torch.stack(parts)
    assert (merged >= stacked.amin(dim=0).clamp(max=0)).all() and (merged <= stacked.amax(dim=0).clamp(min=0)).all()


def test_no_entries() -> None:
    assert trim_elect_average([torch.zeros(0, 3)] * 2, 0.5).shape == (0, 3)
