"""Protocols of what a direct method merges: one tensor as a whole, or block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from .lazy_torch import torch


class TensorInputs(Protocol):
    """The inputs of a direct method for one tensor of any shape; iterable more than once, one expert at a time.

    All tensors have the arithmetic dtype (float32 or float64) and are on the device of the run.
    """

    @property
    def name(self) -> str:
        """Name of the output tensor; seeds methods that draw at random, whatever the order of the tensors."""
        ...

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        ...

    @property
    def base(self) -> torch.Tensor | None:
        """The base tensor; None where the recipe has no base_model."""
        ...

    @property
    def num_experts(self) -> int:
        """N, including the base where the recipe lists it among the models."""
        ...

    def experts(self) -> Iterator[torch.Tensor]:
        """Iterate over the full tensors of the experts, in recipe order."""
        ...

    def task_vectors(self) -> Iterator[torch.Tensor]:
        """Iterate over expert - base, dense, in recipe order, NOT multiplied by any weight."""
        ...

    def is_base(self, index: int) -> bool:
        """Return True when expert `index` is the base model itself, which mergekit lists for some methods."""
        ...


class BlockwiseInputs(Protocol):
    """One tensor of any shape, read block by block: slices of the flat tensor, in their order."""

    @property
    def name(self) -> str:
        """As `TensorInputs.name`."""
        ...

    @property
    def seed(self) -> int:
        """As `TensorInputs.seed`."""
        ...

    @property
    def num_experts(self) -> int:
        """N, including the base where the recipe lists it among the models."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        ...

    @property
    def num_elements(self) -> int:
        """Of the tensor."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic dtype."""
        ...

    def is_base(self, index: int) -> bool:
        """As `TensorInputs.is_base`."""
        ...

    def blocks(self, size: int) -> Iterator[TensorInputs]:
        """Iterate over blocks of `size` elements, the last of which may be shorter. Each pass reads the tensor anew.

        A block's tensors are flat, valid until the next block is asked for, and may be overwritten, except the base.
        """
        ...

    def task_vector(self, index: int) -> torch.Tensor:
        """Return the whole task vector of one expert, flat."""
        ...


BlockMerge: TypeAlias = "Callable[[TensorInputs], torch.Tensor]"  # from a block to its merged entries, flat
