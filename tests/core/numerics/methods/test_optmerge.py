"""OptMerge: the iteration against torch's optimizers, and the closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.interference.gram_route import spectrum_of_operator
from eigenmerge.core.numerics.interference.optmerge_operator import (
    optmerge_operator,
    optmerge_spectrum,
    truncation_rank,
)
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

from ..conditioning import merge_tolerance, rounding_bound
from ..interference.test_optmerge_operator import VARIANTS, experts, loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_iteration_is_the_optimizers(variant: Any) -> None:
    vectors = experts()
    if variant == "full":
        theta = torch.nn.Parameter(sum(vectors))  # pyright: ignore[reportArgumentType]
        optimizer: torch.optim.Optimizer = torch.optim.Adam([theta], lr=1e-3)
    else:
        theta = torch.nn.Parameter(sum(vectors) / 3)
        optimizer = torch.optim.SGD([theta], lr=1e-3, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        loss(theta, vectors, variant).backward()
        optimizer.step()
    merged = merge_task_vectors(vectors, "optmerge", variant=variant, iterations=40, learning_rate=1e-3)
    torch.testing.assert_close(merged, theta.detach(), rtol=1e-8, atol=1e-8 * 40 * 1e-3)  # as in test_wudi.py


@pytest.mark.parametrize("variant", VARIANTS)
def test_closed_form_reaches_the_minimum(variant: Any) -> None:
    vectors = experts()
    best = merge_task_vectors(vectors, "optmerge", variant=variant, solver="closed_form", filter="none")
    iterated = merge_task_vectors(vectors, "optmerge", variant=variant)
    lowest = loss(best, vectors, variant)
    assert lowest < loss(iterated, vectors, variant)
    for seed in range(3):  # a minimum in every direction
        step = 1e-3 * torch.randn((9, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert loss(best + step, vectors, variant) >= lowest * (1 - rounding_bound(12))
    # Directions outside the rows of every B_i keep the anchor.
    zero = merge_task_vectors(vectors, "optmerge", variant=variant, solver="closed_form", filter="none", anchor="zero")
    assert (best - zero).norm() > 1e-3
    torch.testing.assert_close(loss(zero, vectors, variant), lowest)


def test_filters_apply_as_to_wudi() -> None:
    vectors = experts()
    none, soft, hard = (
        merge_task_vectors(vectors, "optmerge", solver="closed_form", **extra)
        for extra in ({"filter": "none"}, {"exp_time": 1e7}, {"filter": "none", "rank_ratio": 1.0})
    )
    tolerance = merge_tolerance("optmerge", vectors, solver="closed_form", exp_time=1e7)  # gain of up to 1e7
    torch.testing.assert_close(soft, none, rtol=0, atol=tolerance * none.norm().item())
    torch.testing.assert_close(hard, none)
    start = merge_task_vectors(vectors, "optmerge", solver="closed_form", exp_time=0.0)
    torch.testing.assert_close(start, sum(vectors))


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_is_solved_in_its_row_space(variant: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    factors = [
        LowRank(
            torch.randn((20, 3), generator=generator, dtype=torch.float64) / 10,
            torch.randn((3, 30), generator=generator, dtype=torch.float64) / 10,
        )
        for _ in range(3)
    ]
    spectrum = optmerge_spectrum(InMemoryTaskVectors(factors), variant)
    assert spectrum.info["route"] == "row_space"
    assert spectrum.num_directions <= 9
    for extra in ({"filter": "none"}, {"exp_time": 300, "rank_ratio": 0.2}):
        options = {"variant": variant, "solver": "closed_form", **extra}
        small = merge_task_vectors(factors, "optmerge", **options)
        dense = [factor.dense() for factor in factors]
        operator = optmerge_operator(InMemoryTaskVectors(dense), variant, truncation_rank((20, 30), 3))
        method: Any = get_method("optmerge")
        large = spectrum_of_operator(operator, kind="optmerge", one_expert_is_solution=False)
        expected = apply_factors(large, method.factors(large, method.Parameters(**options)))
        tolerance = merge_tolerance("optmerge", factors, **options)
        torch.testing.assert_close(small, expected, rtol=0, atol=tolerance * expected.norm().item())


def test_decompositions_are_shared_where_they_can_be() -> None:
    method = get_method("optmerge")
    identify = lambda **given: method.decomposition(method.Parameters(**given))  # noqa: E731  # pyright: ignore
    closed = identify(solver="closed_form", exp_time=5, filter="wiener", scale=2)
    assert closed == identify(solver="closed_form") != identify(solver="closed_form", variant="lora")
    assert identify(variant="lora", iterations=7) == identify(variant="lora", solver="closed_form")
    assert identify(iterations=7) != identify() == identify(scale=3)
