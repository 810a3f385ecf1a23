"""The null cut: without a cut, and with a plain relative cut, the pseudo-inverse is wrong.

Both are implemented here too, and each test shows that they fail where the package does not.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.interference import rounding
from eigenmerge.core.numerics.interference.decompose import decompose_interference
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors

from ..conditioning import merge_tolerance, rounding_bound


def naive_pinv(vectors: list[torch.Tensor], relative_cut: float | None) -> torch.Tensor:
    """f = 1 as published (eigenvalues of at least 1e-8, none cut), or cut at `relative_cut` times the largest."""
    C = sum(v.T @ v / v.square().sum() for v in vectors)
    D = sum(v @ (v.T @ v) / v.square().sum() for v in vectors)
    S = sum(vectors)
    values, Q = torch.linalg.eigh(C)
    passed = torch.ones_like(values) if relative_cut is None else (values > relative_cut * values[-1]).to(values.dtype)
    return S - S @ Q * passed @ Q.T + D @ Q * (passed / values.clamp(min=1e-8)) @ Q.T


def ours(vectors: list[torch.Tensor], name: str = "wudi_pinv", **parameters: Any) -> torch.Tensor:
    method: Any = get_method(name)
    spectrum = decompose_interference(InMemoryTaskVectors(vectors), route="gram")
    return apply_factors(spectrum, method.factors(spectrum, method.Parameters(**parameters)))


def low_rank(size: int, rank: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [
        torch.randn((size, rank), generator=generator) @ torch.randn((rank, size), generator=generator) / size
        for _ in range(count)
    ]


def heavy_tailed(size: int, exponent: float, count: int) -> list[torch.Tensor]:
    """Full rank, singular values k^-exponent, right bases that share a part."""
    generator = torch.Generator().manual_seed(size)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn((rows, columns), generator=generator, dtype=torch.float64)

    sigma = torch.arange(1, size + 1, dtype=torch.float64) ** -exponent
    shared = torch.linalg.qr(normal(size, size))[0]
    found = []
    for _ in range(count):
        right = torch.linalg.qr(shared + 0.5 * normal(size, size) / math.sqrt(size))[0]
        found.append((torch.linalg.qr(normal(size, size))[0] * sigma @ right.T).float())
    return found


@pytest.mark.parametrize("size", [64, 256])
def test_trap_1_no_filter_beyond_the_rank(size: int, relative_error: Any) -> None:
    vectors = low_rank(size, 6, 4)
    exact = ours([v.double() for v in vectors])
    assert relative_error(naive_pinv(vectors, None), exact) > 0.2
    assert relative_error(ours(vectors), exact) < merge_tolerance("wudi_pinv", vectors, dtype=torch.float32)


def test_a_plain_cut_removes_directions_of_heavy_tailed_data(relative_error: Any) -> None:
    size = 256
    vectors = heavy_tailed(size, 1.0, 4)
    exact = ours([v.double() for v in vectors])
    plain = 4 * size * torch.finfo(torch.float32).eps
    lost = relative_error(naive_pinv(vectors, plain), exact)
    assert lost > 0.2
    # lambda_1 / lambda_R is 1e5 here, so float32 cannot give many digits; the lost directions are no rounding error
    assert relative_error(ours(vectors), exact) < lost / 10
    # a bounded filter does not divide by noise and needs no cut: float32 is as good as the bfloat16 of the output
    exact = ours([v.double() for v in vectors], "swudi", exp_time=1300)
    assert relative_error(ours(vectors, "swudi", exp_time=1300), exact) < torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize("columns", [32, 512])
def test_rounding_noise_stays_below_the_cut(columns: int) -> None:
    vectors = low_rank(columns, 3, 5)
    C = sum(v.T @ v / v.square().sum() for v in vectors)
    values = torch.linalg.eigvalsh(C)
    noise, smallest_real = values[: columns - 15], values[columns - 15]
    cut = rounding.eigenvalue_cut(values[-1].item(), values[0].item(), columns, torch.finfo(torch.float32).eps)
    assert noise.abs().max() < cut < smallest_real


def test_a_negative_eigenvalue_raises_the_cut() -> None:
    epsilon = torch.finfo(torch.float32).eps
    quiet = rounding.eigenvalue_cut(1.0, 0.0, 64, epsilon)
    assert quiet == pytest.approx(4 * epsilon)
    assert rounding.eigenvalue_cut(1.0, -1e-4, 64, epsilon) == pytest.approx(2e-4)
    assert rounding.eigenvalue_cut(1.0, 0.0, 4096, epsilon) == pytest.approx(16 * epsilon)
    assert rounding.singular_value_cut(2.0, 64, epsilon) == pytest.approx(8 * epsilon)


def test_tf32_rounds_more() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert rounding.arithmetic_epsilon(torch.float32) == torch.finfo(torch.float32).eps
        torch.set_float32_matmul_precision("high")
        assert rounding.arithmetic_epsilon(torch.float32) == 2**-11
        assert rounding.arithmetic_epsilon(torch.float64) == torch.finfo(torch.float64).eps
    finally:
        torch.set_float32_matmul_precision(before)


def test_null_directions_are_left_out_of_the_spectrum() -> None:
    vectors = low_rank(128, 4, 3)
    spectrum = decompose_interference(InMemoryTaskVectors(vectors), route="gram")
    assert spectrum.num_directions == spectrum.info["num_resolved"] == 12


def test_unresolved_directions_keep_their_part_of_the_sum(relative_error: Any) -> None:
    # the smaller half of the singular values is below the rounding noise of float32 in C, but not in S
    generator = torch.Generator().manual_seed(5)

    def orthogonal() -> torch.Tensor:
        return torch.linalg.qr(torch.randn((40, 40), generator=generator, dtype=torch.float64))[0]

    sigma, right = torch.logspace(0, -5.5, 40, dtype=torch.float64), orthogonal()
    vectors = [(orthogonal() * sigma @ right).float() for _ in range(3)]
    spectrum = decompose_interference(InMemoryTaskVectors(vectors), route="gram")
    resolved = spectrum.statistics["resolved"] > 0
    assert 0 < int(resolved.sum()) < spectrum.num_directions
    nothing_filtered = ours(vectors, "swudi", exp_time=0.0)
    assert relative_error(nothing_filtered, sum(v.double() for v in vectors)) < rounding_bound(40, dtype=torch.float32)
