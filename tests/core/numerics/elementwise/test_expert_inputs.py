"""The experts besides the base, the seeds of random methods, and the lifetime of the tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.elementwise.expert_inputs import (
    check_other_count,
    enumerate_tensors,
    expert_generator,
    other_experts,
    other_indices,
    other_task_vectors,
    require_base,
)
from eigenmerge.core.numerics.registry import get_method

Make = Callable[..., Any]


def test_the_base_among_the_models_is_skipped(in_memory_inputs: Make) -> None:
    base = torch.ones(3)
    inputs = in_memory_inputs([base * 2, base, base * 5], base, base_among=1)
    assert other_indices(inputs) == [0, 2]
    assert [(index, tensor[0].item()) for index, tensor in other_experts(inputs)] == [(0, 2.0), (2, 5.0)]
    assert [(index, tensor[0].item()) for index, tensor in other_task_vectors(inputs)] == [(0, 1.0), (2, 4.0)]


def test_errors_say_what_was_expected(in_memory_inputs: Make) -> None:
    inputs = in_memory_inputs([torch.ones(3)], name="a.weight")
    with pytest.raises(RecipeError, match=r"ties needs a base_model \(for tensor 'a\.weight'\)"):
        require_base(inputs, "ties")
    with pytest.raises(RecipeError, match=r"exactly 2 models beside the base; found 1 for tensor 'a\.weight'"):
        check_other_count(inputs, get_method("nuslerp"))


def test_random_numbers_depend_on_seed_tensor_and_expert(in_memory_inputs: Make) -> None:
    def draw(seed: int, name: str, index: int) -> tuple[float, ...]:
        inputs = in_memory_inputs([], seed=seed, name=name)
        return tuple(torch.rand(4, generator=expert_generator(inputs, index)).tolist())

    draws = {draw(seed, name, index) for seed in (0, 1) for name in ("a", "a\n1", "b") for index in (0, 1, 11)}
    assert len(draws) == 18
    assert draw(1, "b", 0) == draw(1, "b", 0)


def test_a_tensor_is_released_before_the_next_is_formed() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def formed() -> Iterator[torch.Tensor]:
        for value in range(3):
            assert not any(reference() is not None for reference in alive)
            tensor = torch.full((2,), float(value))
            alive.append(weakref.ref(tensor))
            yield tensor
            del tensor

    seen = []
    for index, tensor in enumerate_tensors(formed()):
        seen.append((index, tensor[0].item()))
        del tensor
    assert seen == [(0, 0.0), (1, 1.0), (2, 2.0)]
