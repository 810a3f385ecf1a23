"""The experts that a direct method merges, without the base model among them, and the seeds of random methods.

mergekit lets a recipe list the base model among its models. Methods on task vectors skip it: its task vector is zero,
and its parameters are not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from ...errors import RecipeError
from ..lazy_torch import torch
from ..method import Method
from ..tensor_inputs import BlockwiseInputs, TensorInputs

#: Full tensors in memory while experts are read: the base, an expert, and the next one, which is read ahead.
EXPERT_TENSORS = 3.0
#: Full tensors in memory while task vectors are read: one more, the expert while its task vector is formed.
TASK_VECTOR_TENSORS = 4.0


def require_base(inputs: TensorInputs, method: str) -> torch.Tensor:
    """Return the base tensor.

    Raises
    ------
    RecipeError : the recipe has no base_model
    """
    if inputs.base is None:
        raise RecipeError(
            f"{method} needs a base_model (for tensor {inputs.name!r}); found none in the recipe, add one"
        )
    return inputs.base


def other_indices(inputs: TensorInputs) -> list[int]:
    """Return the indices of the experts that are not the base model, in recipe order."""
    return [index for index in range(inputs.num_experts) if not inputs.is_base(index)]


def enumerate_tensors(tensors: Iterator[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Iterate over (index, tensor) as `enumerate` does, without a reference to a tensor while the next one is formed.

    `enumerate` and `zip` reuse their tuple, which holds the tensor. So does the caller's loop variable: end the loop
    with `del`.
    """
    index = 0
    for tensor in tensors:
        yield index, tensor
        del tensor
        index += 1  # noqa: SIM113


def other_experts(inputs: TensorInputs) -> Iterator[tuple[int, torch.Tensor]]:
    """Iterate over (index, full tensor) of the experts that are not the base model; `del` as in `enumerate_tensors`."""
    for index, expert in enumerate_tensors(inputs.experts()):
        if not inputs.is_base(index):
            yield index, expert
        del expert


def other_task_vectors(inputs: TensorInputs) -> Iterator[tuple[int, torch.Tensor]]:
    """Iterate over (index, task vector) of the experts that are not the base model; `del` as in `enumerate_tensors`."""
    for index, delta in enumerate_tensors(inputs.task_vectors()):
        if not inputs.is_base(index):
            yield index, delta
        del delta


def vectors_to_interpolate(inputs: TensorInputs) -> Iterator[tuple[int, torch.Tensor]]:
    """Iterate over what spherical methods interpolate: task vectors with a base, full tensors without."""
    return other_experts(inputs) if inputs.base is None else other_task_vectors(inputs)


def check_other_count(inputs: TensorInputs, method: Method[Any, Any]) -> None:
    """Check the number of experts, not counting the base.

    Raises
    ------
    RecipeError : it is not `method.other_experts`
    """
    found, expected = len(other_indices(inputs)), method.other_experts
    assert expected is not None, method.name
    if found != expected:
        raise RecipeError(
            f"{method.name} merges exactly {expected} model{'s' if expected > 1 else ''} beside the base;"
            f" found {found} for tensor {inputs.name!r}"
        )


def expert_generator(inputs: TensorInputs | BlockwiseInputs, index: int) -> torch.Generator:
    """Return a generator seeded by the recipe's seed, the tensor's name and the expert's index.

    So random methods do not depend on the order in which tensors are merged. It generates on the CPU, whatever the
    device, so that a merge on a GPU drops the same entries.
    """
    text = f"{inputs.seed}\n{inputs.name}\n{index}".encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(seed % 2**63)
