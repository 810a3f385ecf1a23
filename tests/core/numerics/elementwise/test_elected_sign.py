"""The election in one pass against its definition on the stack of all experts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.elementwise.elected_sign import SignElection

from ..conditioning import rounding_bound


def by_definition(experts: torch.Tensor, weights: list[float], *, mean: bool, weighted_vote: bool) -> torch.Tensor:
    """TIES on the stack (N, ...), in float64."""
    shaped = torch.tensor(weights, dtype=torch.float64).reshape(-1, *[1] * (experts.ndim - 1))
    weighted = experts * shaped
    votes = (weighted if weighted_vote else experts).sum(dim=0)
    elected = torch.where(votes >= 0, 1.0, -1.0)
    agrees = weighted.sign() == elected
    total = (weighted * agrees).sum(dim=0)
    if not mean:
        return total
    divisor = (shaped * agrees).sum(dim=0)
    return total / torch.where(divisor == 0, 1.0, divisor)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    weights=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=6),
    mean=st.booleans(),
    weighted_vote=st.booleans(),
)
def test_streaming_equals_the_definition(seed: int, weights: list[float], mean: bool, weighted_vote: bool) -> None:
    # small integers: sums are exact, so votes are often equal
    generator = torch.Generator().manual_seed(seed)
    experts = torch.randint(-2, 3, (len(weights), 3, 7), generator=generator).double()
    election = SignElection(experts[0], with_weights=mean)
    for expert, weight in zip(experts, weights, strict=True):
        for span in (slice(0, 10), slice(10, 21)):
            election.add(span, expert.reshape(-1)[span].clone(), weight, weighted_vote=weighted_vote)
    merged = election.weighted_mean() if mean else election.sum()
    expected = by_definition(experts, weights, mean=mean, weighted_vote=weighted_vote)
    torch.testing.assert_close(merged, expected, rtol=rounding_bound(len(weights)), atol=0)


def test_the_divisor_has_a_lower_bound_where_one_is_given() -> None:
    def election() -> SignElection:
        started = SignElection(torch.zeros(2), with_weights=True)
        started.add(slice(0, 2), torch.tensor([1.0, 0.0]), 1e-9)
        return started

    assert election().weighted_mean().tolist() == pytest.approx([1.0, 0.0])
    assert election().weighted_mean(min_weight=1e-6).tolist() == pytest.approx([1e-3, 0.0])
