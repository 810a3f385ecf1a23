"""Read the base and the experts of one output tensor, one expert at a time, as input of the numerics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..errors import NonFiniteError
from ..formats.dtypes import FLOAT8_DTYPES
from ..listing import LoraSource, StackedLora, TensorSource
from ..numerics.cast import count_nonfinite
from ..numerics.linear_algebra import TOO_LARGE
from ..numerics.noise.storage_noise import StorageNoise, is_noise, storage_noise
from ..numerics.task_vectors import LowRank, may_overflow
from ..planning.cost.experts_ahead import experts_ahead
from ..planning.plan import ExpertTensor, MatrixView, TensorPlan, matrix_shape_of
from ..storage.checkpoints.tensor_reader import TensorReader
from ..storage.read_ahead import read_ahead
from ..storage.torch_dtypes import torch_dtype
from ..views import has_scale, reshape, select, select_index, transpose
from .rounded_entries import clear_rounded_entries
from .row_placement import covered, fill_with_means, place_rows
from .stacked_factors import ReadPart, dense_delta, factors_in, oriented


@dataclass(slots=True)
class _Stored:
    """One expert's tensors in their stored dtypes.

    factors : lora_B and lora_A of each adapted part; one pair for a weight that is no stack
    """

    entry: ExpertTensor
    full: torch.Tensor | None
    factors: list[tuple[LoraSource, torch.Tensor, torch.Tensor]]


@dataclass(slots=True)
class ExpertStream:
    """Base and experts of one tensor in the arithmetic dtype. Holds the base and one expert while the next one is read,
    or the next ones of a remote store where they are small.

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
    _noises: dict[int, StorageNoise | None] = field(default_factory=dict[int, "StorageNoise | None"], init=False)
    _variances: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, init=False)  # of rows and columns

    @property
    def name(self) -> str:
        return self.tensor.tied_to or self.tensor.name

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
            changed = self.tensor.base_rows is not None or stored.shape != self._full_shape
            self._base = self._in_output_rows(stored) if changed else stored
        return self._base

    def _in_output_rows(self, stored: torch.Tensor) -> torch.Tensor:
        """Return the base in the output's vocabulary. Tokens that the base lacks get the mean of the experts' rows."""
        rows = self.tensor.base_rows or ((0, 0, len(stored)),)
        placed = place_rows(stored, rows, stored.new_zeros(self.tensor.shape))
        new = ~covered(rows, placed.shape[0])
        for row, source in self.tensor.token_rows:
            if bool(new[row]):
                self._set_token_row(placed, row, source)
                new[row] = False
        if self.tensor.padding_start is not None:
            new[self.tensor.padding_start :] = False
        placed = fill_with_means(placed, new, self.tensor.experts, self._read_full) if bool(new.any()) else placed
        return self._padded(placed)

    def _set_token_row(self, into: torch.Tensor, row: int, source: TensorSource | None) -> None:
        """Set one row to that of the model that the recipe names for its token."""
        into[row] = 0.0 if source is None else self._checked(self.reader.read(source), source)[0]

    def _padded(self, placed: torch.Tensor) -> torch.Tensor:
        """Set the rows of `pad_to_multiple_of` to the mean of the others, in place."""
        start = self.tensor.padding_start
        if start is not None and start < len(placed):
            placed[start:] = placed[:start].mean(dim=0)
        return placed

    def _rows_for_missing_tokens(self) -> torch.Tensor:
        """Return rows for the tokens that an expert lacks: the base's, or else the mean of the other experts."""
        if self.base is not None and not self.tensor.token_rows:
            return self.base
        if self._default_rows is None and self.base is not None:
            self._default_rows = self.base.clone()
            for row, source in self.tensor.token_rows:
                self._set_token_row(self._default_rows, row, source)
        if self._default_rows is None:
            rest = torch.zeros(self.tensor.shape, dtype=self.dtype, device=self.device)
            lacking = torch.zeros(self.tensor.shape[0], dtype=torch.bool)
            for expert in self.tensor.experts:
                lacking |= ~covered(expert.rows, len(lacking))
            self._default_rows = fill_with_means(rest, lacking, self.tensor.experts, self._read_full)
            for row, source in self.tensor.token_rows:
                self._set_token_row(self._default_rows, row, source)
        return self._default_rows

    def _read_full(self, expert: ExpertTensor) -> torch.Tensor:
        assert expert.full is not None
        return self._checked(self._read(expert.full), expert.full)

    @property
    def _full_shape(self) -> tuple[int, ...]:
        """Of what `_read` returns: a matrix (out, in), or a tensor as it is stored."""
        as_matrix = self.view is not None or self.tensor.matrix_shape is not None or self.tensor.in_out
        return self.shape if as_matrix else self.tensor.shape

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix, (out, in): of the view, or of the whole tensor in its 2-D form."""
        return matrix_shape_of(self.tensor.matrix_shape or self.tensor.shape, self.view, self.tensor.in_out)

    @property
    def max_ranks(self) -> Sequence[int]:
        """The largest rank that each expert's delta can have."""
        full = min(self.shape)
        return [
            full if expert.full is not None else min(full, expert.lora.rank_in(self.view)) if expert.lora else 0
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
            yield _dense(delta)
            del delta

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        """Yield deltas multiplied by each expert's weight; those of adapters as factors."""
        for index, stored in enumerate(self._read_experts()):
            weight = stored.entry.parameters.get("weight", 1.0)
            assert isinstance(weight, (int, float))
            delta, noise = self._bounded_delta(stored)
            self._noises[index] = None if noise is None else self._kept(index, noise, weight)
            del stored
            if weight != 1.0:
                delta = LowRank(delta.left * weight, delta.right) if isinstance(delta, LowRank) else delta * weight
            yield delta
            del delta

    def _kept(self, index: int, noise: StorageNoise, weight: float) -> StorageNoise:
        """Return the noise of a weighted expert, in memory of all experts: as for the probes of a `Recorder`."""
        noise = noise if weight == 1.0 else noise.times(weight)
        parts = (noise.rows, noise.columns)
        if self._variances is None:
            rows, columns = (part.new_empty((self.num_experts, len(part))) for part in parts)
            self._variances = rows, columns
        kept = [all_experts[index].copy_(part) for all_experts, part in zip(self._variances, parts, strict=True)]
        return replace(noise, rows=kept[0], columns=kept[1])

    def storage_noise(self, index: int) -> StorageNoise | None:
        """As `WithStorageNoise`: of the task vector that an iteration over the stream has yielded."""
        if self.tensor.experts[index].noise is None:
            return None
        assert index in self._noises, "the noise of an expert follows from its numbers, which have not been read"
        return self._noises[index]

    def _read_experts(self) -> Iterator[_Stored]:
        experts = self.tensor.experts
        return read_ahead(self._read_expert, experts, experts_ahead(experts))

    def _read_expert(self, expert: ExpertTensor) -> _Stored:
        full = self._read(expert.full) if expert.full is not None else None
        if isinstance(expert.lora, StackedLora):
            loras = [part.lora for part in expert.lora.parts_in(self.view)]
        else:
            loras = [expert.lora] if expert.lora is not None else []
        return _Stored(expert, full, [(one, self.reader.read(one.up), self.reader.read(one.down)) for one in loras])

    def _full(self, stored: _Stored) -> torch.Tensor:
        if stored.full is None:
            assert self.base is not None, "the planner requires a base for every adapter"
            return self.base + _dense(self._delta(stored))
        full = self._without_adapter(stored)
        return full + _dense(self._adapter_delta(stored)) if stored.entry.lora else full

    def _without_adapter(self, stored: _Stored) -> torch.Tensor:
        """Return the expert's full tensor in the output's rows."""
        assert stored.full is not None and stored.entry.full is not None
        full = self._checked(stored.full, stored.entry.full)
        if stored.entry.rows is None:
            return full
        return self._padded(place_rows(full, stored.entry.rows, self._rows_for_missing_tokens().clone()))

    def _changed_delta(self, stored: _Stored, base: torch.Tensor) -> tuple[torch.Tensor, StorageNoise | None]:
        """Return the dense delta without what is known to be rounding of the expert's stored dtype, and its noise."""
        entry, source = stored.entry, stored.entry.full
        assert source is not None
        full = self._without_adapter(stored)
        delta = full - base
        scale = None
        if has_scale(source):
            scale = self.reader.read_scale(self._arranged(source))
            if entry.rows is not None:
                scale = place_rows(scale, entry.rows, scale.new_ones(delta.shape))
        dtype, noise = torch_dtype(source.dtype), None
        if entry.rounded:
            clear_rounded_entries(delta, full, base, dtype, scale)
        if entry.noise is not None and delta.numel():
            rows = (len(delta), -1) if delta.ndim else (1, 1)
            matrix, factors = delta.reshape(rows), None if scale is None else scale.reshape(rows)
            noise = storage_noise(full.reshape(rows), matrix, dtype, factors, shrinks=entry.noise == "shrink")
            if source.dtype in FLOAT8_DTYPES and is_noise(matrix, noise.plus(self._base_noise(base, matrix))):
                delta, noise = torch.zeros_like(delta), noise.times(0.0)
        return (delta.add_(_dense(self._adapter_delta(stored))) if entry.lora else delta), noise

    def _base_noise(self, base: torch.Tensor, matrix: torch.Tensor) -> StorageNoise | None:
        """Return the rounding of a float8 base: it and a float8 expert are quantized apart, each from 16 bits."""
        source = self.tensor.base
        assert source is not None
        if source.dtype not in FLOAT8_DTYPES or base.shape != source.shape or self.tensor.base_rows is not None:
            return None
        scale = self.reader.read_scale(self._arranged(source)).reshape(matrix.shape) if has_scale(source) else None
        return storage_noise(base.reshape(matrix.shape), matrix, torch_dtype(source.dtype), scale)

    def _delta(self, stored: _Stored) -> torch.Tensor | LowRank:
        """Return the delta without its noise, which only float8 experts need to be computed here: some are frozen."""
        if stored.full is not None:
            is_float8 = stored.entry.full is not None and stored.entry.full.dtype in FLOAT8_DTYPES
            if (stored.entry.rounded or (stored.entry.noise and is_float8)) and self.base is not None:
                return self._changed_delta(stored, self.base)[0]
            full = self._full(stored)
            return full if self.base is None else full - self.base
        if stored.entry.lora is not None:
            return self._adapter_delta(stored)
        return self._no_delta()

    def _bounded_delta(self, stored: _Stored) -> tuple[torch.Tensor | LowRank, StorageNoise | None]:
        """Return the delta of one expert and its noise, after a check that sums of such deltas fit the arithmetic.

        Raises
        ------
        NonFiniteError : they do not
        """
        noise: StorageNoise | None = None
        if stored.full is not None and stored.entry.noise is not None and self.base is not None:
            delta, noise = self._changed_delta(stored, self.base)
        else:
            delta = self._delta(stored)
        if may_overflow(delta, self.num_experts):
            entry = stored.entry
            source = entry.full.uri if entry.full is not None else stored.factors[0][0].up.uri
            error = NonFiniteError(f"{source}: tensor {self.tensor.name!r}: {TOO_LARGE}")
            error.source = source
            raise error
        return delta, noise

    def _no_delta(self) -> torch.Tensor | LowRank:
        if (
            self.view is not None or len(self.tensor.matrix_shape or self.tensor.shape) == 2
        ):  # an adapter without factors for this weight
            rows, columns = self.shape
            left = torch.zeros((rows, 0), dtype=self.dtype, device=self.device)
            return LowRank(left, torch.zeros((0, columns), dtype=self.dtype, device=self.device))
        assert self.base is not None, "the planner requires a base for every adapter"
        return torch.zeros_like(self.base)

    def _adapter_delta(self, stored: _Stored) -> torch.Tensor | LowRank:
        """Return the delta of an adapter: factors of a matrix, the dense delta of a stack where no view is cut."""
        lora = stored.entry.lora
        read: list[tuple[torch.Tensor, torch.Tensor]] = []
        for one, up, down in stored.factors:
            read.append(oriented(self._checked(up, one.up), self._checked(down, one.down), one))
        if isinstance(lora, StackedLora):
            parts = [ReadPart(p, *pair) for p, pair in zip(lora.parts_in(self.view), read, strict=True)]
            if self.view is None:
                assert self.base is not None, "the planner requires a base for every adapter"
                return dense_delta(parts, self.base)
            if not parts:
                return self._no_delta()
            left, right = factors_in(parts, self.tensor.shape, self.view)
        else:
            ((left, right),) = read
            if self.view is not None:
                entries = slice(self.view.start, self.view.stop, self.view.step)
                left, right = (left[entries], right) if self.view.axis == 0 else (left, right[:, entries])
        return LowRank(right.T, left.T) if self.tensor.in_out else LowRank(left, right)

    def _read(self, source: TensorSource) -> torch.Tensor:
        """Return a stored tensor as a matrix (out, in), restricted to the view, in its stored dtype."""
        return self.reader.read(self._arranged(source))

    def _arranged(self, source: TensorSource) -> TensorSource:
        """Return a tensor as a matrix (out, in), restricted to the view."""
        if self.tensor.matrix_shape is not None:
            source = reshape(source, self.tensor.matrix_shape)
        if self.view is not None:
            matrix = source if self.view.index is None else select_index(source, self.view.index)
            source = select(matrix, self.view.axis, self.view.start, self.view.stop, self.view.step)
        return transpose(source) if self.tensor.in_out else source

    def _checked(self, stored: torch.Tensor, source: TensorSource) -> torch.Tensor:
        """Return the tensor in the arithmetic dtype, after a check that all values are finite."""
        tensor = stored.to(self.device).to(self.dtype)  # in this order: a copy to a GPU moves the stored bytes
        bad = count_nonfinite(tensor)
        if bad:
            raise nonfinite_input(source, self.tensor.name, bad, tensor.numel())
        return tensor


def nonfinite_input(source: TensorSource, name: str, num_bad: int, num_elements: int) -> NonFiniteError:
    """Return the error for a stored tensor with NaN or Inf."""
    error = NonFiniteError(
        f"{source.uri}: tensor {name!r} has {num_bad} NaN or Inf among {num_elements} values;"
        " remove this expert, or pass --allow-nonfinite to `merge` to keep the base's tensor there"
    )
    error.source = source.uri
    return error


def _dense(delta: torch.Tensor | LowRank) -> torch.Tensor:
    return delta.dense() if isinstance(delta, LowRank) else delta
