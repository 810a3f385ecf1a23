"""The election in one pass against its definition on the stack of all experts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.elementwise.block_election import BlockElection
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [[0.4], [0.4, 0.4, 0.4], [0.3, -0.2, 1.5, 0.0, 1e-30], [1e-20] * 8])
@pytest.mark.parametrize("mean", [True, False])
def test_the_election_of_a_block_has_the_same_bytes(dtype: torch.dtype, weights: list[float], *, mean: bool) -> None:
    generator = torch.Generator().manual_seed(len(weights))
    experts = torch.randn(len(weights), 4099, generator=generator, dtype=dtype)
    experts[:, ::3] = (experts[:, ::3] * 2).round()  # votes cancel
    experts[torch.rand(experts.shape, generator=generator) < 0.4] = 0.0
    experts[:, 1::5] *= -0.0
    experts[:, 2::7] *= 2.0**-149 if dtype == torch.float32 else 2.0**-1074
    streaming, block = SignElection(experts[0], with_weights=mean), BlockElection(with_weights=mean)
    for expert, weight in zip(experts, weights, strict=True):
        streaming.add(slice(0, len(expert)), expert.clone(), weight)
        block.add(expert.clone(), weight)
    found, expected = (one.weighted_mean() if mean else one.sum() for one in (block, streaming))
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    assert torch.equal(found.view(integer), expected.view(integer))
    one_entry = BlockElection(with_weights=mean)
    one_entry.add(torch.tensor([-2.0], dtype=dtype), 0.5)
    assert (one_entry.weighted_mean() if mean else one_entry.sum()).item() == (-2.0 if mean else -1.0)
