"""Filters against their formulas, at zero, and against the iterations that they describe."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics import filters
from eigenmerge.core.numerics.filters import FilterValues

from .conditioning import rounding_bound

VALUES = torch.tensor([1.7, 0.4, 3e-2, 1e-4, 1e-9, 1e-17, 0.0], dtype=torch.float64)
ALL_RESOLVED = torch.ones(len(VALUES), dtype=torch.bool)

BOUNDED = {
    "exponential": filters.exponential(VALUES, 300.0),
    "tikhonov": filters.tikhonov(VALUES, 0.01),
    "landweber": filters.landweber(VALUES, 0.9 / 1.7, 150),
    "heavy_ball": filters.heavy_ball(VALUES, 1e-3, 0.9, 12),  # few enough steps for f <= 1
    "wiener": filters.wiener(VALUES, 3, 10, VALUES > 0),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_passed_is_gain_times_eigenvalue(name: str) -> None:
    found = BOUNDED[name]
    torch.testing.assert_close(found.gain * VALUES, found.passed, rtol=rounding_bound(12), atol=1e-300)
    assert torch.isfinite(found.gain).all()
    assert ((found.passed >= 0) & (found.passed <= 1 + rounding_bound(12))).all()
    assert found.passed[-1] == 0
    assert (found.passed[:-1] >= found.passed[1:] - rounding_bound(12)).all()  # f increases with the eigenvalue


def test_formulas() -> None:
    t = VALUES[:4]
    torch.testing.assert_close(filters.exponential(t, 300.0).passed, 1 - torch.exp(-300 * t))
    torch.testing.assert_close(filters.tikhonov(t, 0.01).passed, t / (t + 0.01))
    torch.testing.assert_close(filters.landweber(t, 0.5, 150).passed, 1 - (1 - 0.5 * t) ** 150)
    floored = torch.tensor([1e-4, 1e-8, 1e-8, 1e-8, 1e-8, 1e-8, 1e-8]).double()  # eigenvalues 4 to 10 of 10
    noise = floored.mean()
    torch.testing.assert_close(filters.wiener(VALUES, 3, 10, VALUES > 0).passed, VALUES**2 / (VALUES**2 + noise))


def test_wiener_without_a_tail_takes_the_median() -> None:
    values = torch.tensor([2.0, 0.5, 0.1]).double()
    torch.testing.assert_close(filters.wiener(values, 3, 3, values > 0).passed, values**2 / (values**2 + 0.5))


def test_limits_at_zero_are_slopes() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert filters.exponential(zero, 300.0).gain.item() == 300
    assert filters.tikhonov(zero, 0.01).gain.item() == pytest.approx(100)
    assert filters.landweber(zero, 0.5, 150).gain.item() == 75
    assert filters.heavy_ball(zero, 1e-4, 0.0, 10).gain.item() == pytest.approx(2e-3)
    tiny = torch.full((1,), 1e-300, dtype=torch.float64)
    assert filters.exponential(tiny, 300.0).gain.item() == pytest.approx(
        300
    )  # (1 - exp(-t lambda)) / lambda without expm1 gives 0


def test_no_filter_passes_only_resolved_directions() -> None:
    resolved = torch.tensor([True, True, False, True, True, True, True])
    found = filters.no_filter(VALUES, resolved)
    assert found.passed.tolist() == [1, 1, 0, 1, 1, 1, 0]
    assert found.gain[2] == found.gain[-1] == 0


def quadratic(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn((6, 6), generator=generator, dtype=torch.float64) / 3
    target = torch.randn((4, 6), generator=generator, dtype=torch.float64)
    start = torch.randn((4, 6), generator=generator, dtype=torch.float64)
    return root @ root.T, target, start


def filtered_solution(C: torch.Tensor, D: torch.Tensor, start: torch.Tensor, make: object) -> torch.Tensor:
    values, Q = torch.linalg.eigh(C)
    found = make(values)  # pyright: ignore[reportCallIssue]
    assert isinstance(found, FilterValues)
    return start - start @ Q * found.passed @ Q.T + D @ Q * found.gain @ Q.T


@pytest.mark.parametrize(("momentum", "rate"), [(0.0, 0.05), (0.9, 0.01), (0.0, 0.6)])  # 0.6: steps beyond 1 / lambda
def test_iterations_are_filters(momentum: float, rate: float) -> None:
    C, D, start = quadratic()
    theta = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([theta], lr=rate, momentum=momentum)
    for _ in range(25):
        theta.grad = 2 * (theta.detach() @ C - D)
        optimizer.step()
    expected = theta.detach()
    # 25 steps multiply errors by at most their largest factor |1 - 2 rate lambda| + momentum, once each
    growth = max(
        1.0, float(1 - 2 * rate * torch.linalg.eigvalsh(C)[0]), float(2 * rate * torch.linalg.eigvalsh(C)[-1] - 1)
    )
    tolerance = rounding_bound(25, growth**25) * expected.norm().item()
    heavy = filtered_solution(C, D, start, lambda values: filters.heavy_ball(values, rate, momentum, 25))
    torch.testing.assert_close(heavy, expected, rtol=0, atol=tolerance)
    if momentum == 0.0:
        plain = filtered_solution(C, D, start, lambda values: filters.landweber(values, 2 * rate, 25))
        torch.testing.assert_close(plain, expected, rtol=0, atol=tolerance)


def test_gradient_flow_is_the_exponential_filter() -> None:
    # n steps of rate r with n r fixed tend to t = 2 r n
    flow = filters.exponential(VALUES, 20.0).passed
    coarse, fine = (filters.landweber(VALUES, 20.0 / steps, steps).passed for steps in (1000, 10000))
    assert (fine - flow).abs().max() < 0.11 * (coarse - flow).abs().max() < 1e-3


def test_diverging_descent_is_detected() -> None:
    assert not filters.is_finite(filters.landweber(torch.tensor([5.0]).double(), 100.0, 300))
    assert filters.is_finite(filters.landweber(torch.tensor([1e-3]).double(), 100.0, 300))


@settings(deadline=None, max_examples=50)
@given(gamma=st.floats(0.2, 3.0), value=st.floats(1e-12, 2.0))
def test_power(gamma: float, value: float) -> None:
    values = torch.tensor([value, 0.0], dtype=torch.float64)
    plain = filters.exponential(values, 300.0)
    found = filters.raise_to_power(plain, gamma, values, torch.tensor([True, False]))
    torch.testing.assert_close(found.passed[0], plain.passed[0] ** gamma)
    torch.testing.assert_close(found.gain[0], found.passed[0] / value)
    # (t lambda)^gamma / lambda at 0 is 0 for gamma > 1, t for gamma = 1, and infinite, so set to 0, for gamma < 1
    assert found.gain[1] == (300.0 if gamma == 1.0 else 0.0)


def test_a_power_below_one_passes_no_null_directions() -> None:
    # f^0.5 / lambda grows without bound towards 0
    values = torch.tensor([1.0, 1e-20], dtype=torch.float64)
    found = filters.raise_to_power(filters.exponential(values, 1.0), 0.5, values, torch.tensor([True, False]))
    assert found.gain[1] == 0
