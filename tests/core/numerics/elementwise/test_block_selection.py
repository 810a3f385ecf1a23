"""Selections block by block keep the entries of the masks of whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from eigenmerge.core.numerics.elementwise import sparsify
from eigenmerge.core.numerics.elementwise.bit_masks import integer_dtype
from eigenmerge.core.numerics.elementwise.block_selection import BlockSelection, drop_outliers, keep_largest
from eigenmerge.core.numerics.elementwise.block_statistics import complete_selections
from eigenmerge.core.numerics.tensor_inputs import TensorInputs

SIZE = 71_003


class Block:
    """A block of one task vector, without a base."""

    name, seed, num_experts, base = "weight", 0, 1, None

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def experts(self) -> Iterator[torch.Tensor]:
        yield self._values.clone()

    task_vectors = experts

    def is_base(self, index: int) -> bool:
        return False


class Blocks:
    """One task vector; implements BlockwiseInputs."""

    name, seed, num_experts, num_elements, shape = "weight", 0, 1, SIZE, (SIZE,)

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self.dtype = values.dtype

    def is_base(self, index: int) -> bool:
        return False

    def blocks(self, size: int) -> Iterator[TensorInputs]:
        for block in self._values.split(size):
            yield Block(block)

    def task_vector(self, index: int) -> torch.Tensor:
        return self._values.clone()


def entries(kind: str) -> torch.Tensor:
    """Differences of stored numbers, of which some are 0, -0 and denormal."""
    generator = torch.Generator().manual_seed(5)
    base = 0.02 * torch.randn(SIZE, generator=generator)
    expert = base + 1e-3 * torch.randn(SIZE, generator=generator)
    if kind == "float64":
        values = expert.double() - base.double()
    elif kind == "few ties":
        values = expert - base
        order = values.abs().argsort(descending=True)
        for place in (int(0.02 * SIZE), int(0.4 * SIZE)):
            values[order[place - 2 : place + 2]] = -values[order[place]].abs()
        return values
    else:
        stored = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        dtype = stored.get(kind, torch.float8_e4m3fn)
        values = expert.to(dtype).float() - (base if kind == "mixed" else base.to(dtype).float())
    values[::7] = 0.0
    values[3::11] = -0.0
    values[5::97] = 2.0**-149
    return values


KINDS = ["float32", "bfloat16", "float16", "float8", "mixed", "float64", "few ties"]


def assert_selects(values: torch.Tensor, selection: BlockSelection, keep: torch.Tensor | None) -> None:
    complete_selections(Blocks(values), {0: selection}, rescale=True)
    selected = torch.cat([selection.select(block.clone()) for block in values.split(1 << 14)])
    expected = values if keep is None else torch.where(keep, values, 0.0)
    zero = (values == 0) & (selected == 0)  # of either sign
    integer = integer_dtype(values)
    assert torch.equal(selected.masked_fill(zero, 0).view(integer), expected.masked_fill(zero, 0).view(integer))
    assert selection.factor == sparsify.rescale_selection(values, keep).factor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.0, 1e-5, 0.02, 0.4, 0.85, 0.99999, 1.0])
def test_keep_largest(kind: str, density: float) -> None:
    values = entries(kind)
    assert_selects(values, keep_largest(SIZE, values.element_size(), density), sparsify.keep_largest(values, density))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("density", "gamma"), [(0.38, 0.02), (0.5, 0.0), (0.9, 0.3), (1e-9, 0.1), (1.0, 0.1)])
def test_drop_outliers(kind: str, density: float, gamma: float) -> None:
    values = entries(kind)
    selection = drop_outliers(SIZE, values.element_size(), density, gamma)
    assert_selects(values, selection, sparsify.drop_outliers(values, density, gamma))


@pytest.mark.parametrize("make", [torch.zeros, torch.ones])
def test_tensors_of_one_magnitude(make: Callable[[int], torch.Tensor]) -> None:
    values = make(SIZE)
    assert_selects(values, keep_largest(SIZE, 4, 0.3), sparsify.keep_largest(values, 0.3))
