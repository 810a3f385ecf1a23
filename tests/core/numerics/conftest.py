"""Fixtures: a TensorInputs whose tensors are in memory, and the relative error of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch


class InMemoryInputs:
    """The inputs of a direct method, from tensors in memory; `reads` counts the passes over the experts.

    `base_among` is the index of the base in `experts`, for recipes that list it among their models.
    """

    def __init__(
        self,
        experts: Sequence[torch.Tensor],
        base: torch.Tensor | None = None,
        *,
        name: str = "layer.weight",
        seed: int = 0,
        base_among: int | None = None,
    ) -> None:
        self.name = name
        self.seed = seed
        self.reads = 0
        self._experts = list(experts)
        self._base = base
        self._base_among = base_among

    @property
    def base(self) -> torch.Tensor | None:
        return self._base

    @property
    def num_experts(self) -> int:
        return len(self._experts)

    def experts(self) -> Iterator[torch.Tensor]:
        self.reads += 1
        yield from self._experts

    def task_vectors(self) -> Iterator[torch.Tensor]:
        self.reads += 1
        assert self._base is not None
        for expert in self._experts:
            yield expert - self._base

    def is_base(self, index: int) -> bool:
        return index == self._base_among


@pytest.fixture
def in_memory_inputs() -> Callable[..., InMemoryInputs]:
    """The class itself: `in_memory_inputs(experts, base, name=..., seed=..., base_among=...)`."""
    return InMemoryInputs


@pytest.fixture(scope="session")
def relative_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """relative_error(found, expected): ||found - expected|| / ||expected||, or / 1 where the expectation is 0."""

    def compute(found: torch.Tensor, expected: torch.Tensor) -> float:
        scale = expected.double().norm().item() or 1.0
        return (found.double() - expected.double()).norm().item() / scale

    return compute
