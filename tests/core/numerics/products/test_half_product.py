"""x^T x by the lower triangle against the whole product."""

from __future__ import annotations

import pytest
import torch

from eigenmerge.core.numerics.products.half_product import add_gram_lower, gram

from ..conditioning import rounding_bound

SHAPES = [(5, 3), (40, 256), (300, 257), (64, 1100), (7, 0), (0, 6), (1, 513)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_whole_product(shape: tuple[int, int], dtype: torch.dtype, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape[::-1] if transposed else shape, generator=generator, dtype=dtype)
    x = x.T if transposed else x
    expected = x.double().T @ x.double()
    found = gram(x)
    assert found.dtype == dtype and torch.equal(found, found.T)
    tolerance = rounding_bound(max(shape), dtype=dtype) * max(expected.norm().item(), 1e-30)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)

    total = torch.eye(shape[1], dtype=dtype)
    add_gram_lower(total, x)
    torch.testing.assert_close(
        total.tril().double(), (expected + torch.eye(shape[1], dtype=torch.float64)).tril(), rtol=0, atol=2 * tolerance
    )
