"""Products by oneDNN against those of torch, for every layout of the operands."""

from __future__ import annotations

from collections.abc import Iterator
from time import process_time
from timeit import repeat

import pytest
import torch

from eigenmerge.core.numerics.products import matrix_product
from eigenmerge.core.numerics.products.half_product import gram
from eigenmerge.core.numerics.products.matrix_product import add_product, product, uses_onednn
from tests.resident_memory import resident

from ..conditioning import rounding_bound

SHAPES = [(300, 140, 200), (520, 1300, 130), (128, 300, 2900), (100, 900, 900), (3, 4, 5), (0, 9, 7)]
LAYOUTS = ["rows", "columns", "part of rows", "part of columns", "every other row", "repeated row"]


@pytest.fixture
def onednn() -> Iterator[None]:
    if not uses_onednn(torch.ones(1)):
        pytest.skip("torch multiplies by MKL on this processor")
    yield


def laid_out(layout: str, rows: int, columns: int) -> torch.Tensor:
    """Return a random matrix whose elements are placed in memory in that way."""
    generator = torch.Generator().manual_seed(rows + 7 * columns)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    match layout:
        case "columns":
            return draw(columns, rows).T
        case "part of rows":
            return draw(rows, columns + 5)[:, 3 : columns + 3]
        case "part of columns":
            return draw(columns, rows + 5).T[3 : rows + 3]
        case "every other row":
            return draw(2 * rows, columns)[::2]
        case "repeated row":
            return draw(1, columns).expand(rows, columns)
        case _:
            return draw(rows, columns)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("left_layout", "right_layout"), [*((one, one) for one in LAYOUTS), *(("rows", one) for one in LAYOUTS[1:])]
)
def test_every_layout(onednn: None, shape: tuple[int, int, int], left_layout: str, right_layout: str) -> None:
    rows, inner, columns = shape
    left, right = laid_out(left_layout, rows, inner), laid_out(right_layout, inner, columns)
    expected = left.double() @ right.double()
    bound = rounding_bound(max(shape), dtype=torch.float32) * float(left.norm() * right.norm()) + 1e-30
    found = product(left, right)
    assert found.shape == (rows, columns) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)

    total = torch.full((rows, 2 * columns), 3.0)[:, :columns]  # a part of a larger matrix, as the blocks of C are
    assert add_product(total, left, right, alpha=-2.0) is total
    torch.testing.assert_close(total.double(), 3.0 - 2.0 * expected, rtol=0, atol=3 * bound + 1e-6)


def test_errors_are_those_of_float32(onednn: None) -> None:
    """At most 2.5 times the error of torch's product, and twice where x^T x is summed (measured: 2.3 and 1.7)."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2000, 700, generator=generator), torch.randn(2000, 700, generator=generator)
    across, within = x.double().T @ y.double(), x.double().T @ x.double()
    errors = [float((found - across).norm() / across.norm()) for found in (product(x.T, y), x.T @ y)]
    assert errors[0] < 2.5 * errors[1]
    errors = [float((found - within).norm() / within.norm()) for found in (gram(x), x.T @ x)]
    assert errors[0] < 2.0 * errors[1]


def test_it_is_faster(onednn: None) -> None:
    """It takes 0.45 of the time; where it does not, the processor's maker is no reason to use it."""
    left, right = torch.randn(768, 768), torch.randn(768, 768)
    actions = (lambda: product(left, right), lambda: left @ right)
    ours, torchs = (min(repeat(action, number=3, repeat=7, timer=process_time)) for action in actions)
    assert ours < 0.9 * torchs


def test_what_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """float64, small matrices, and matrices that need derivatives; everything where oneDNN is turned off."""
    generator = torch.Generator().manual_seed(2)
    left, right = torch.randn(150, 150, generator=generator), torch.randn(150, 150, generator=generator)
    assert torch.equal(product(left.double(), right.double()), left.double() @ right.double())
    assert torch.equal(product(left[:9], right), left[:9] @ right)
    product(left.clone().requires_grad_(), right).sum().backward()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not uses_onednn(left)
    assert torch.equal(product(left, right), left @ right)
    assert torch.equal(add_product(left.clone(), left, right, alpha=0.5), left.clone().addmm_(left, right, alpha=0.5))


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, expected: bool) -> None:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        pytest.skip("this torch has only one of the two libraries")
    monkeypatch.setattr(matrix_product, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert matrix_product._is_faster.__wrapped__() is expected  # pyright: ignore[reportPrivateUsage]


def test_memory_does_not_grow_with_the_number_of_sizes(onednn: None) -> None:
    """oneDNN keeps 0.7 MB of code for every combination of sizes that it meets."""

    def multiply(columns: range) -> None:
        for count in columns:
            product(left[:, :count], right[:count, :count])

    left, right = torch.ones(256, 700), torch.ones(700, 700)
    multiply(range(690, 700))
    before = resident("VmRSS")
    multiply(range(300, 690))
    assert resident("VmRSS") - before < 60 * 2**20
