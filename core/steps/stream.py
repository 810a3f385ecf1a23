"""The experts of one output tensor, read one at a time: what the numerics see of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ..errors import NonFiniteError
from ..numerics.task_vectors import LowRank
from ..planning.plan import ExpertTensor, LoraSource, TensorPlan, TensorSource

ReadTensor = Callable[[TensorSource], torch.Tensor]


@dataclass(slots=True)
class ExpertStream:
    """Reads base and experts of one tensor in the arithmetic dtype; at most the base and one expert are held.

    It is both what a spectral method iterates (TaskVectors) and what a direct method reads (TensorInputs).
    """

    tensor: TensorPlan
    read: ReadTensor
    dtype: torch.dtype
    device: torch.device
    seed: int = 0
    view: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda stored: stored)  # a sub-matrix or 2-D form
    _base: torch.Tensor | None = None

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def num_experts(self) -> int:
        return len(self.tensor.experts)

    @property
    def base(self) -> torch.Tensor | None:
        if self.tensor.base is None:
            return None
        if self._base is None:
            self._base = self.view(self._load(self.tensor.base))
        return self._base

    @property
    def shape(self) -> tuple[int, int]:
        if self._base is None and self.tensor.base is None:
            rows, columns = self.view(torch.empty(self.tensor.shape, device="meta")).shape
        else:
            assert self.base is not None
            rows, columns = self.base.shape
        return rows, columns

    @property
    def max_ranks(self) -> Sequence[int]:
        full = min(self.shape)
        return [full if expert.full is not None else expert.lora.down.shape[0] if expert.lora else 0 for expert in self.tensor.experts]

    @property
    def all_low_rank(self) -> bool:
        return all(expert.full is None for expert in self.tensor.experts)

    def is_base(self, index: int) -> bool:
        return self.tensor.experts[index].is_base

    def experts(self) -> Iterator[torch.Tensor]:
        """Full expert tensors, no weight applied."""
        for expert in self.tensor.experts:
            yield self._full(expert)

    def task_vectors(self) -> Iterator[torch.Tensor]:
        """Dense deltas, no weight applied."""
        for expert in self.tensor.experts:
            delta = self._delta(expert)
            yield delta.dense() if isinstance(delta, LowRank) else delta

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        """Deltas with each expert's weight folded in; factors stay factors."""
        for expert in self.tensor.experts:
            weight = expert.parameters.get("weight", 1.0)
            assert isinstance(weight, (int, float))
            delta = self._delta(expert)
            if weight != 1.0:
                delta = LowRank(delta.left * weight, delta.right) if isinstance(delta, LowRank) else delta * weight
            yield delta

    def _full(self, expert: ExpertTensor) -> torch.Tensor:
        if expert.full is None:
            assert self.base is not None
            delta = self._delta(expert)
            return self.base + (delta.dense() if isinstance(delta, LowRank) else delta)
        stored = self.view(self._load(expert.full))
        return stored + self._low_rank(expert.lora).dense() if expert.lora else stored

    def _delta(self, expert: ExpertTensor) -> torch.Tensor | LowRank:
        if expert.full is None:
            if expert.lora is not None:
                return self._low_rank(expert.lora)
            rows, columns = self.shape if len(self.tensor.shape) == 2 else (0, 0)
            if len(self.tensor.shape) == 2:
                empty = torch.zeros((rows, 0), dtype=self.dtype, device=self.device)
                return LowRank(empty, torch.zeros((0, columns), dtype=self.dtype, device=self.device))
            assert self.base is not None
            return torch.zeros_like(self.base)
        full = self._full(expert)
        return full if self.base is None else full - self.base

    def _low_rank(self, lora: LoraSource) -> LowRank:
        up, down = self._load(lora.up), self._load(lora.down)
        if lora.fan_in_fan_out:  # the weight is stored (in, out), the adapter is not
            return LowRank(down.T * lora.scaling, up.T)
        return LowRank(up * lora.scaling, down)

    def _load(self, source: TensorSource) -> torch.Tensor:
        tensor = self.read(source).to(self.device, self.dtype)
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            bad = int(finite.numel() - finite.sum())
            raise NonFiniteError(
                f"{source.uri}: tensor {self.tensor.name!r} has {bad} NaN or Inf among {tensor.numel()} values;"
                " remove this expert, or pass --allow-nonfinite to keep the base's tensor there"
            )
        return tensor
