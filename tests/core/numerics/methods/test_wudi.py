"""WUDI's iteration against torch's optimizers on the published loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.tensor_level import merge_task_vectors

from ..conditioning import rounding_bound


def experts(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn((count, 7, 10), generator=generator, dtype=torch.float64) / 10)


def published(
    vectors: list[torch.Tensor], optimizer: str, steps: int, rate: float, start: torch.Tensor
) -> torch.Tensor:
    theta = torch.nn.Parameter(start.clone())
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    stepper = kind([theta], lr=rate)
    for _ in range(steps):
        stepper.zero_grad()
        sum(((theta - v) @ v.T).square().sum() / v.square().sum() for v in vectors).backward()  # pyright: ignore
        stepper.step()
    return theta.detach()


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 1e-3), ("sgd", 0.05)])
@pytest.mark.parametrize("anchor", ["sum", "mean", "zero"])
def test_iteration_is_the_optimizers(optimizer: str, rate: float, anchor: str) -> None:
    vectors = experts()
    start = {"sum": 1.0, "mean": 0.25, "zero": 0.0}[anchor] * sum(vectors)
    expected = published(vectors, optimizer, 50, rate, start)  # pyright: ignore[reportArgumentType]
    merged = merge_task_vectors(vectors, "wudi", optimizer=optimizer, learning_rate=rate, iterations=50, anchor=anchor)
    # Adam divides a gradient by its size, so rounding is amplified where the gradient crosses zero. 50 steps move an
    # entry by at most 50 rate; agreement to 1e-8 of that leaves half of float64's digits to the amplification.
    torch.testing.assert_close(merged, expected, rtol=1e-8, atol=1e-8 * 50 * rate)


def test_no_iteration_is_the_anchor() -> None:
    vectors = experts()
    for optimizer in ("adam", "sgd"):
        merged = merge_task_vectors(vectors, "wudi", optimizer=optimizer, iterations=0)
        torch.testing.assert_close(merged, sum(vectors))


def test_adam_stays_at_a_solution() -> None:
    # the gradient is rounding noise there, and Adam divides by its size: iterating theta itself walks away from it
    v = experts(1)[0]
    C, D = v.T @ v / v.square().sum(), v @ v.T @ v / v.square().sum()
    theta = torch.nn.Parameter(v.clone())
    stepper = torch.optim.Adam([theta], lr=1e-5)
    for _ in range(300):
        theta.grad = 2 * (theta.detach() @ C - D)
        stepper.step()
    assert (theta.detach() - v).abs().max() > 1e-7
    torch.testing.assert_close(merge_task_vectors([v], "wudi"), v, rtol=0, atol=rounding_bound(10) * v.norm().item())


def test_plain_descent_shares_the_spectrum_of_the_closed_forms() -> None:
    method, swudi = get_method("wudi"), get_method("swudi")
    identify: Any = method.decomposition  # pyright: ignore[reportAttributeAccessIssue]
    shared = swudi.decomposition(swudi.Parameters())  # pyright: ignore[reportAttributeAccessIssue]
    sgd = identify(method.Parameters(optimizer="sgd"))  # pyright: ignore[reportCallIssue]
    assert sgd == shared
    adam = identify(method.Parameters())
    assert adam != shared
    assert adam != identify(method.Parameters(learning_rate=1e-4))  # pyright: ignore[reportCallIssue]
    assert adam == identify(method.Parameters(scale=0.1))  # pyright: ignore[reportCallIssue]
