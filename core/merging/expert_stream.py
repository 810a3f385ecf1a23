"""Read the base and the experts of one output tensor, one expert at a time, as input of the numerics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..errors import NonFiniteError
from ..listing import LoraSource, TensorSource
from ..numerics.task_vectors import LowRank
from ..planning.plan import ExpertTensor, MatrixView, TensorPlan
from ..storage.checkpoints.tensor_reader import TensorReader
from ..storage.read_ahead import read_ahead
from ..storage.torch_dtypes import torch_dtype
from ..views import has_scale, reshape, select
from .rounded_entries import clear_rounded_entries
from .row_placement import covered, fill_with_means, place_rows


@dataclass(slots=True)
class _Stored:
    """One expert's tensors in their stored dtypes."""

    entry: ExpertTensor
    full: torch.Tensor | None
    up: torch.Tensor | None
    down: torch.Tensor | None


@dataclass(slots=True)
class ExpertStream:
    """Base and experts of one tensor in the arithmetic dtype. Holds the base and one expert while the next one is read.

    Implements TaskVectors, the input of spectral methods, and TensorInputs, the input of direct methods.

    Parameters
    ----------
    view : one matrix inside the tensor (q of a fused QKV weight, one expert of a mixture); only its bytes are read
        where they lie together
    """

    tensor: TensorPlan
    reader: TensorReader
    dtype: torch.dtype
    device: torch.device
    seed: int = 0
    view: MatrixView | None = None
    _base: torch.Tensor | None = None  # in the rows of the output
    _default_rows: torch.Tensor | None = None  # rows for tokens that an expert lacks, when there is no base

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def num_experts(self) -> int:
        return len(self.tensor.experts)

    @property
    def base(self) -> torch.Tensor | None:
        """The base in the output's rows, read at first use; None where the recipe has none."""
        if self.tensor.base is None:
            return None
        if self._base is None:
            stored = self._checked(self._read(self.tensor.base), self.tensor.base)
            self._base = stored if self.tensor.base_rows is None else self._in_output_rows(stored)
        return self._base

    def _in_output_rows(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the base in the output's vocabulary. Tokens that the base lacks get the mean of the experts' rows."""
        assert self.tensor.base_rows is not None
        placed = place_rows(stored, self.tensor.base_rows, stored.new_zeros(self.tensor.shape))
        new = ~covered(self.tensor.base_rows, placed.shape[0])
        return fill_with_means(placed, new, self.tensor.experts, self._read_full) if bool(new.any()) else placed

    def _rows_for_missing_tokens(self) -> torch.Tensor:
        """Return rows for the tokens that an expert lacks: the base's, or else the mean of the other experts."""
        if self.base is not None:
            return self.base
        if self._default_rows is None:
            rest = torch.zeros(self.tensor.shape, dtype=self.dtype, device=self.device)
            lacking = torch.zeros(self.tensor.shape[0], dtype=torch.bool)
            for expert in self.tensor.experts:
                lacking |= ~covered(expert.rows, len(lacking))
            self._default_rows = fill_with_means(rest, lacking, self.tensor.experts, self._read_full)
        return self._default_rows

    def _read_full(self, expert: ExpertTensor) -> torch.Tensor:
        assert expert.full is not None
        return self._checked(self._read(expert.full), expert.full)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix: of the view, or of the whole tensor in its 2-D form."""
        rows, columns = self.tensor.matrix_shape or self.tensor.shape
        if self.view is None:
            return rows, columns
        length = self.view.stop - self.view.start
        return (length, columns) if self.view.axis == 0 else (rows, length)

    @property
    def max_ranks(self) -> Sequence[int]:
        """The largest rank that each expert's delta can have."""
        full = min(self.shape)
        return [
            full if expert.full is not None else min(full, expert.lora.down.shape[0]) if expert.lora else 0
            for expert in self.tensor.experts
        ]

    @property
    def all_low_rank(self) -> bool:
        """Whether every expert is an adapter on the base."""
        return all(expert.full is None for expert in self.tensor.experts)

    def is_base(self, index: int) -> bool:
        return self.tensor.experts[index].is_base

    def experts(self) -> Iterator[torch.Tensor]:
        """Yield the experts' full tensors, without their weights applied."""
        for stored in self._read_experts():
            full = self._full(stored)
            del stored  # a bound name would keep this expert in memory beside the next one
            yield full
            del full

    def task_vectors(self) -> Iterator[torch.Tensor]:
        """Yield dense deltas, without the experts' weights applied."""
        for stored in self._read_experts():
            delta = self._delta(stored)
            del stored
            yield delta.dense() if isinstance(delta, LowRank) else delta
            del delta

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        """Yield deltas multiplied by each expert's weight; those of adapters as factors."""
        for stored in self._read_experts():
            weight = stored.entry.parameters.get("weight", 1.0)
            assert isinstance(weight, (int, float))
            delta = self._delta(stored)
            del stored
            if weight != 1.0:
                delta = LowRank(delta.left * weight, delta.right) if isinstance(delta, LowRank) else delta * weight
            yield delta
            del delta

    def _read_experts(self) -> Iterator[_Stored]:
        return read_ahead(self._read_expert, self.tensor.experts)

    def _read_expert(self, expert: ExpertTensor) -> _Stored:
        full = self._read(expert.full) if expert.full is not None else None
        if expert.lora is None:
            return _Stored(expert, full, None, None)
        return _Stored(expert, full, self.reader.read(expert.lora.up), self.reader.read(expert.lora.down))

    def _full(self, stored: _Stored) -> torch.Tensor:
        if stored.full is None:
            assert self.base is not None, "the planner requires a base for every adapter"
            delta = self._delta(stored)
            return self.base + (delta.dense() if isinstance(delta, LowRank) else delta)
        full = self._without_adapter(stored)
        return full + self._low_rank(stored).dense() if stored.entry.lora else full

    def _without_adapter(self, stored: _Stored) -> torch.Tensor:
        """Return the expert's full tensor in the output's rows."""
        assert stored.full is not None and stored.entry.full is not None
        full = self._checked(stored.full, stored.entry.full)
        if stored.entry.rows is None:
            return full
        return place_rows(full, stored.entry.rows, self._rows_for_missing_tokens().clone())

    def _changed_delta(self, stored: _Stored, base: torch.Tensor) -> torch.Tensor:
        """Return the dense delta without the rounding of the expert's stored dtype."""
        source = stored.entry.full
        assert source is not None
        full = self._without_adapter(stored)
        delta = full - base
        scale = None
        if has_scale(source):
            scale = self.reader.read_scale(self._arranged(source))
            if stored.entry.rows is not None:
                scale = place_rows(scale, stored.entry.rows, scale.new_ones(delta.shape))
        clear_rounded_entries(delta, full, base, torch_dtype(source.dtype), scale)
        return delta.add_(self._low_rank(stored).dense()) if stored.entry.lora else delta

    def _delta(self, stored: _Stored) -> torch.Tensor | LowRank:
        if stored.full is not None:
            if stored.entry.rounded and self.base is not None:
                return self._changed_delta(stored, self.base)
            full = self._full(stored)
            return full if self.base is None else full - self.base
        if stored.entry.lora is not None:
            return self._low_rank(stored)
        if len(self.tensor.matrix_shape or self.tensor.shape) == 2:  # an adapter without factors for this weight
            rows, columns = self.shape
            left = torch.zeros((rows, 0), dtype=self.dtype, device=self.device)
            return LowRank(left, torch.zeros((0, columns), dtype=self.dtype, device=self.device))
        assert self.base is not None, "the planner requires a base for every adapter"
        return torch.zeros_like(self.base)

    def _low_rank(self, stored: _Stored) -> LowRank:
        lora = stored.entry.lora
        assert lora is not None and stored.up is not None and stored.down is not None
        up, down = self._checked(stored.up, lora.up), self._checked(stored.down, lora.down)
        left, right = self._oriented(up, down, lora)
        if self.view is not None and self.view.axis == 0:
            left = left[self.view.start : self.view.stop]
        elif self.view is not None:
            right = right[:, self.view.start : self.view.stop]
        return LowRank(left, right)

    @staticmethod
    def _oriented(up: torch.Tensor, down: torch.Tensor, lora: LoraSource) -> tuple[torch.Tensor, torch.Tensor]:
        if lora.fan_in_fan_out:  # the weight is stored (in, out), its adapter (out, in)
            return down.T * lora.scaling, up.T
        return up * lora.scaling, down

    def _read(self, source: TensorSource) -> torch.Tensor:
        """Return a stored tensor as a matrix, restricted to the view, in its stored dtype."""
        return self.reader.read(self._arranged(source))

    def _arranged(self, source: TensorSource) -> TensorSource:
        """Return a tensor as a matrix, restricted to the view."""
        if self.tensor.matrix_shape is not None:
            source = reshape(source, self.tensor.matrix_shape)
        if self.view is not None:
            source = select(source, self.view.axis, self.view.start, self.view.stop)
        return source

    def _checked(self, stored: torch.Tensor, source: TensorSource) -> torch.Tensor:
        """Return the tensor in the arithmetic dtype, after a check that all values are finite."""
        tensor = stored.to(self.device, self.dtype)
        # A sum is Inf or NaN if any term is. Only then the terms are checked one by one.
        if tensor.numel() and not bool(torch.isfinite(tensor.sum())):
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise NonFiniteError(
                    f"{source.uri}: tensor {self.tensor.name!r} has {bad} NaN or Inf among {tensor.numel()} values;"
                    " remove this expert, or pass --allow-nonfinite to keep the base's tensor there"
                )
        return tensor
