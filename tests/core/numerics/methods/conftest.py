"""Fixtures of the method tests: experts of known structure, a merge in one call, the largest tensor allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eigenmerge.core.numerics.apply_filter import apply_factors
from eigenmerge.core.numerics.method import DirectMethod, SpectralMethod
from eigenmerge.core.numerics.registry import get_method
from eigenmerge.core.numerics.task_vectors import InMemoryTaskVectors, LowRank

from ..conditioning import merge_tolerance

Vectors = Sequence[torch.Tensor | LowRank]


@pytest.fixture
def merge() -> Callable[..., torch.Tensor]:
    """merge(name, vectors, **parameters): the merged delta."""

    def merge_by(name: str, vectors: Vectors, **parameters: Any) -> torch.Tensor:
        method = get_method(name)
        assert isinstance(method, SpectralMethod)
        chosen = method.Parameters(**parameters)
        spectrum = method.decompose(InMemoryTaskVectors(vectors), chosen)
        return apply_factors(spectrum, method.factors(spectrum, chosen))

    return merge_by


@pytest.fixture
def merge_direct() -> Callable[..., torch.Tensor]:
    """merge_direct(name, inputs, each=None, **parameters): the merged tensor, base included.

    `each` are per-expert parameters: one mapping for all experts, or a list of mappings.
    """

    def merge_by(
        name: str, inputs: Any, each: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, **parameters: Any
    ) -> torch.Tensor:
        method = get_method(name)
        assert isinstance(method, DirectMethod)
        own = each if isinstance(each, Sequence) else [each or {}] * inputs.num_experts
        return method.merge(inputs, method.Parameters(**parameters), [method.Expert(**given) for given in own])

    return merge_by


@pytest.fixture
def tolerance_of() -> Callable[..., float]:
    """tolerance_of(name, vectors, **parameters): the relative error of that merge that rounding explains."""
    return merge_tolerance


@pytest.fixture
def full_experts() -> Callable[..., list[torch.Tensor]]:
    """full_experts(num, rows, columns, seed=0, dtype=float64): dense Gaussian experts."""

    def make(
        num: int, rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype) for _ in range(num)]

    return make


@pytest.fixture
def lora_experts() -> Callable[..., list[LowRank]]:
    """lora_experts(num, rows, columns, rank, seed=0, dtype=float64): Gaussian factors."""

    def make(
        num: int, rows: int, columns: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> list[LowRank]:
        generator = torch.Generator().manual_seed(seed)
        made = []
        for _ in range(num):
            left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
            made.append(LowRank(left.to(dtype), torch.randn(rank, columns, generator=generator).to(dtype)))
        return made

    return make


@pytest.fixture
def orthogonal() -> Callable[..., torch.Tensor]:
    """orthogonal(size, seed=0): a random rotation, float64."""

    def make(size: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 + seed)
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        return basis

    return make


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


class _LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(tensor.numel() for tensor in _tensors(result))])
        return result


@pytest.fixture
def largest_tensor() -> Callable[..., Any]:
    """`with largest_tensor() as seen: ...` sets `seen.elements` to the size of the largest tensor created."""

    @contextmanager
    def watch() -> Iterator[_LargestTensor]:
        with _LargestTensor() as mode:
            yield mode

    return watch
