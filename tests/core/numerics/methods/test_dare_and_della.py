"""DARE and DELLA: reproducible for any order of work, and unbiased on average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eigenmerge.core.numerics.method import DirectMethod
from eigenmerge.core.numerics.registry import get_method

from ..conditioning import rounding_bound

Make = Callable[..., Any]
RANDOM = ["dare_linear", "dare_ties", "della_linear", "della"]


def direct(name: str) -> DirectMethod[Any, Any]:
    method = get_method(name)
    assert isinstance(method, DirectMethod)
    return method


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merge(name: str, inputs: Any, density: float, weight: float = 1.0, **parameters: Any) -> torch.Tensor:
    method = direct(name)
    each = method.Expert(density=density, weight=weight)  # type: ignore[call-arg]
    return method.merge(inputs, method.Parameters(**parameters), [each] * inputs.num_experts)


@pytest.mark.parametrize("name", RANDOM)
def test_seed_tensor_and_index_decide_what_is_dropped(name: str, in_memory_inputs: Make) -> None:
    base, experts = torch.zeros(30, 40), [normal(30, 40, seed=i) for i in range(2)]
    merged = merge(name, in_memory_inputs(experts, base), 0.5)
    assert torch.equal(merged, merge(name, in_memory_inputs(experts, base), 0.5))
    assert not torch.equal(merged, merge(name, in_memory_inputs(experts, base, name="other"), 0.5))
    assert not torch.equal(merged, merge(name, in_memory_inputs(experts, base, seed=1), 0.5))
    assert not torch.equal(merged, merge(name, in_memory_inputs(experts[::-1], base), 0.5))
    assert direct(name).order_matters


@pytest.mark.parametrize("name", RANDOM)
def test_global_random_state_is_neither_used_nor_changed(name: str, in_memory_inputs: Make) -> None:
    base, experts = torch.zeros(30, 40), [normal(30, 40)]
    torch.manual_seed(1)
    merged = merge(name, in_memory_inputs(experts, base), 0.5)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(merged, merge(name, in_memory_inputs(experts, base), 0.5))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_two_experts_drop_different_entries(name: str, in_memory_inputs: Make) -> None:
    delta = normal(30, 40)
    kept = merge(name, in_memory_inputs([delta, delta], torch.zeros(30, 40)), 0.5, rescale=False) / delta
    values, counts = kept.round(decimals=4).unique(return_counts=True)
    assert values.tolist() == [0.0, 1.0, 2.0]
    assert counts[1] > 400  # kept by one of the two: half of 1200 entries, less 0.12 of them where della ranks alike


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_kept_entries_have_the_l1_norm_of_the_task_vector(name: str, in_memory_inputs: Make) -> None:
    delta = normal(30, 40)
    inputs = in_memory_inputs([delta], torch.zeros(30, 40))
    rescaled, plain = merge(name, inputs, 0.6), merge(name, inputs, 0.6, rescale=False)
    expected = delta.double().abs().sum().item()
    assert rescaled.double().abs().sum().item() == pytest.approx(expected, rel=rounding_bound(1, dtype=torch.float32))
    assert torch.equal(plain, torch.where(plain != 0, delta, 0.0))
    assert plain.count_nonzero().item() == pytest.approx(0.6 * 1200, abs=85)  # five standard errors


def test_dare_is_the_task_vector_on_average(in_memory_inputs: Make) -> None:
    # All entries have one magnitude, so rescaling to the L1 norm equals division by the density on average.
    base, delta = normal(100, 100, seed=1), normal(100, 100).sign() * 0.5
    trials = 200
    merges = (merge("dare_linear", in_memory_inputs([base + delta], base, seed=i), 0.25) for i in range(trials))
    mean = torch.stack(list(merges)).mean(dim=0)
    # one entry is 0.5 / 0.25 with probability 0.25: variance 0.25 * 0.75 * 2^2
    standard_error = (0.75 / trials) ** 0.5
    error = mean - base - delta
    assert error.abs().max() < 6 * standard_error
    assert error.mean().abs() < 6 * standard_error / 100


@pytest.mark.parametrize("name", RANDOM)
def test_density_one_drops_nothing_and_zero_everything(name: str, in_memory_inputs: Make) -> None:
    base, expert = normal(9, 4, seed=1), normal(9, 4)
    inputs = in_memory_inputs([expert], base)
    torch.testing.assert_close(merge(name, inputs, 1.0), expert)
    assert torch.equal(merge(name, inputs, 0.0), base)


@pytest.mark.parametrize(("ties", "linear"), [("dare_ties", "dare_linear"), ("della", "della_linear")])
def test_signs_are_elected_among_the_same_entries(ties: str, linear: str, in_memory_inputs: Make) -> None:
    delta = normal(30, 40)
    inputs = in_memory_inputs([delta, -2 * delta], torch.zeros(30, 40))
    summed = merge(linear, inputs, 0.5, rescale=False, normalize=False)
    elected = merge(ties, inputs, 0.5, rescale=False, normalize=False)
    both = (summed / delta).round(decimals=4) == -1  # both kept the entry: only the expert with the larger one agrees
    assert both.any()
    torch.testing.assert_close(elected, torch.where(both, -2 * delta, summed))


def test_della_refuses_values_outside_zero_and_one() -> None:
    method = direct("della")
    with pytest.raises(ValidationError, match=r"density 0\.9 with epsilon 0\.15 .* expected epsilon below 0\.1"):
        method.Expert(density=0.9)  # type: ignore[call-arg]
    method.Expert(density=1.0)  # type: ignore[call-arg]
    method.Expert(density=0.0)  # type: ignore[call-arg]
