"""Read the base and the experts of one output tensor block by block, as input of direct methods."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import final

import torch

from ...errors import NonFiniteError
from ...listing import TensorSource
from ...planning.cost.block_projection import window_bytes
from ...planning.cost.experts_ahead import is_remote
from ...planning.plan import TensorPlan
from ...storage.checkpoints.tensor_reader import TensorReader
from ...storage.torch_dtypes import torch_dtype
from ..expert_stream import nonfinite_input
from ..rounded_entries import clear_rounded_entries
from .flat_reader import FlatReader, open_flat

_BASE = -1  # index of the base among the sources
_PASS_BLOCK = 1 << 18  # elements: of passes that only copy or check


class NonFiniteBlockError(NonFiniteError):
    """A block of an input holds NaN or Inf. `BlockStream.check_finite` raises the error of the whole tensor."""


@final
class BlockStream:
    """Base and experts of one tensor, block by block; implements BlockwiseInputs. Close it at the end.

    Parameters
    ----------
    tensor : with `in_blocks`: its inputs are stored tensors of its own shape
    dtype : of the arithmetic
    """

    def __init__(self, tensor: TensorPlan, reader: TensorReader, dtype: torch.dtype, seed: int) -> None:
        self._tensor = tensor
        self._reader = reader
        self._dtype = dtype
        self._seed = seed
        self._stack = ExitStack()
        self._open: dict[int, FlatReader] = {}
        self._requested: dict[int, FlatReader] = {}  # of remote experts of which nothing was read yet
        self._read_up_to: dict[int, int] = {}  # the first bytes of each source, as many as were read

    @property
    def name(self) -> str:
        return self._tensor.tied_to or self._tensor.name

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def num_experts(self) -> int:
        return len(self._tensor.experts)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._tensor.shape)

    @property
    def num_elements(self) -> int:
        return math.prod(self._tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def has_base(self) -> bool:
        """Whether the recipe has a base model."""
        return self._tensor.base is not None

    def is_base(self, index: int) -> bool:
        return self._tensor.experts[index].is_base

    def blocks(self, size: int) -> Iterator[Block]:
        for start in range(0, self.num_elements, size):
            yield Block(self, start, min(start + size, self.num_elements))

    def task_vector(self, index: int) -> torch.Tensor:
        whole = torch.empty(self.num_elements, dtype=self._dtype)
        for block in self.blocks(_PASS_BLOCK):
            whole[block.start : block.stop] = block.task_vector(index)
        return whole

    def stored(self, start: int, stop: int) -> torch.Tensor:
        """Return elements of the base in its stored dtype, valid until the next call."""
        return self._stored(_BASE, start, stop)

    def finish(self) -> None:
        """Check that the files did not change while they were read.

        Raises
        ------
        CheckpointError : one did
        """
        for reader in self._open.values():
            reader.finish()
        self._reader.count_bytes(sum(self._read_up_to.values()))

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def check_finite(self) -> None:
        """Check all values of the inputs that were read so far, in the order in which a merge of whole tensors does.

        Raises
        ------
        NonFiniteError : names the first tensor with NaN or Inf, and their number
        """
        for index in sorted(self._open):
            bad = 0
            for start in range(0, self.num_elements, _PASS_BLOCK):
                stop = min(start + _PASS_BLOCK, self.num_elements)
                bad += int((~torch.isfinite(self._stored(index, start, stop).to(self._dtype))).sum())
            if bad:
                raise nonfinite_input(self._source(index), self._tensor.name, bad, self.num_elements)

    def values(self, index: int, start: int, stop: int) -> torch.Tensor:
        """Return elements of the base (-1) or of an expert in the arithmetic dtype, in memory of their own.

        Raises
        ------
        NonFiniteBlockError : one is NaN or Inf
        """
        stored = self._stored(index, start, stop)
        values = stored.to(self._dtype, copy=True)
        # A sum is Inf or NaN if any term is. Only then the terms are checked one by one.
        if not math.isfinite(values.sum().item()) and not bool(torch.isfinite(values).all()):
            raise NonFiniteBlockError(f"{self._source(index).uri}: tensor {self._tensor.name!r} has NaN or Inf")
        return values

    def delta(self, index: int, start: int, stop: int, base: torch.Tensor) -> torch.Tensor:
        """Return elements of an expert's task vector."""
        full = self.values(index, start, stop)
        expert = self._tensor.experts[index]
        if not expert.rounded:
            return full.sub_(base)
        delta = full - base
        clear_rounded_entries(delta, full, base, torch_dtype(self._source(index).dtype))
        return delta

    def _source(self, index: int) -> TensorSource:
        source = self._tensor.base if index == _BASE else self._tensor.experts[index].full
        assert source is not None, "the planner lets only stored tensors be read in blocks"
        return source

    def _stored(self, index: int, start: int, stop: int) -> torch.Tensor:
        source = self._source(index)
        if index not in self._open:
            if not self._open:
                self._request_experts(index)
            self._open[index] = self._requested.pop(index, None) or self._opened(source)
        dtype = torch_dtype(source.dtype)
        first, last = start * dtype.itemsize, stop * dtype.itemsize
        self._read_up_to[index] = max(last, self._read_up_to.get(index, 0))
        return self._open[index].read(first, last).view(dtype)

    def _request_experts(self, first: int) -> None:
        """Request the first windows of all remote experts, so that a block does not wait for one after the other."""
        for index, expert in enumerate(self._tensor.experts):
            if index != first and expert.full is not None and is_remote(expert.full):
                self._requested[index] = self._opened(expert.full)

    def _opened(self, source: TensorSource) -> FlatReader:
        reader = open_flat(self._reader, source, window_bytes(self._tensor, source))
        self._stack.callback(reader.close)
        return reader


@dataclass(slots=True)
class Block:
    """Elements [start, stop) of the flat tensor; implements TensorInputs. Every tensor is in memory of its own."""

    stream: BlockStream
    start: int
    stop: int
    _base: torch.Tensor | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def seed(self) -> int:
        return self.stream.seed

    @property
    def num_experts(self) -> int:
        return self.stream.num_experts

    @property
    def base(self) -> torch.Tensor | None:
        if self._base is None and self.stream.has_base:
            self._base = self.stream.values(_BASE, self.start, self.stop)
        return self._base

    def experts(self) -> Iterator[torch.Tensor]:
        for index in range(self.num_experts):
            yield self.stream.values(index, self.start, self.stop)

    def task_vectors(self) -> Iterator[torch.Tensor]:
        for index in range(self.num_experts):
            yield self.task_vector(index)

    def task_vector(self, index: int) -> torch.Tensor:
        """Return expert - base of one expert; the expert itself where there is no base."""
        base = self.base
        if base is None:
            return self.stream.values(index, self.start, self.stop)
        return self.stream.delta(index, self.start, self.stop, base)

    def is_base(self, index: int) -> bool:
        return self.stream.is_base(index)
