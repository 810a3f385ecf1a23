"""Which of the experts a direct method works on, and the seeds of those that draw at random.

mergekit lets a recipe list the base model among its models. Methods on task vectors pass over it there (its task
vector is zero and its parameters are not used); these functions do that in one place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from ...errors import RecipeError
from ..lazy_torch import torch
from ..method import Method, TensorInputs

#: Full tensors that reading experts takes: the base, an expert, and the next one that is being read ahead.
EXPERT_TENSORS = 3.0
#: Full tensors that reading task vectors takes: one more, as the expert is there while its task vector is formed.
TASK_VECTOR_TENSORS = 4.0


def require_base(inputs: TensorInputs, method: str) -> torch.Tensor:
    """The base tensor.

    Raises
    ------
    RecipeError : if the recipe has no base_model
    """
    if inputs.base is None:
        raise RecipeError(f"{method} needs a base_model (for tensor {inputs.name!r}); the recipe names none")
    return inputs.base


def other_indices(inputs: TensorInputs) -> list[int]:
    """Indices of the experts that are not the base model, in recipe order."""
    return [index for index in range(inputs.num_experts) if not inputs.is_base(index)]


def enumerate_tensors(tensors: Iterator[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """As `enumerate`, but without keeping a tensor while the next one is formed (enumerate and zip reuse their tuple).

    A caller's loop variable keeps it too: end the loop's body with `del`.
    """
    index = 0
    for tensor in tensors:
        yield index, tensor
        del tensor
        index += 1  # noqa: SIM113


def other_experts(inputs: TensorInputs) -> Iterator[tuple[int, torch.Tensor]]:
    """(index, full tensor) of the experts that are not the base model, one at a time; see `enumerate_tensors`."""
    for index, expert in enumerate_tensors(inputs.experts()):
        if not inputs.is_base(index):
            yield index, expert
        del expert


def other_task_vectors(inputs: TensorInputs) -> Iterator[tuple[int, torch.Tensor]]:
    """(index, task vector) of the experts that are not the base model, one at a time; see `enumerate_tensors`."""
    for index, delta in enumerate_tensors(inputs.task_vectors()):
        if not inputs.is_base(index):
            yield index, delta
        del delta


def vectors_to_interpolate(inputs: TensorInputs) -> Iterator[tuple[int, torch.Tensor]]:
    """Task vectors where there is a base, full tensors where there is none: the origin of spherical methods."""
    return other_experts(inputs) if inputs.base is None else other_task_vectors(inputs)


def check_other_count(inputs: TensorInputs, method: Method[Any, Any]) -> None:
    """
    Raises
    ------
    RecipeError : if the experts beside the base are not exactly `method.other_experts`
    """
    found, expected = len(other_indices(inputs)), method.other_experts
    assert expected is not None, method.name
    if found != expected:
        raise RecipeError(
            f"{method.name} merges exactly {expected} model{'s' if expected > 1 else ''} beside the base;"
            f" found {found} for tensor {inputs.name!r}"
        )


def expert_generator(inputs: TensorInputs, index: int) -> torch.Generator:
    """A generator of this tensor's and this expert's own: random methods do not depend on the order of work.

    It draws on the CPU whatever the device, so that a merge on a GPU drops the same entries.
    """
    text = f"{inputs.seed}\n{inputs.name}\n{index}".encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(seed % 2**63)
