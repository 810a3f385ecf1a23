"""Measure the experts of one matrix against its merged delta: probes from the pass that merges, or from the store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import torch

from ..cache.expert_probes import read_probes, write_probes
from ..errors import CorruptObjectError, ObjectNotFoundError
from ..numerics.interference.expert_probes import (
    Measures,
    Probes,
    RecordedTaskVectors,
    Recorder,
    measure,
    num_probes,
)
from ..numerics.task_vectors import LowRank, TaskVectors
from ..storage.store import Store
from .blocks.sampled_measures import SampledMeasures, sampled_entries
from .expert_stream import ExpertStream


def can_measure(num_experts: int, shape: tuple[int, ...]) -> bool:
    """Return whether the experts of a tensor of that shape are measured: of matrices, and not of too many experts."""
    return len(shape) == 2 and 0 not in shape and num_probes(num_experts) > 0


class MeasuredExperts:
    """The task vectors of one matrix, whose probes are taken while a spectrum is computed.

    notes : probes that were damaged and recorded again

    Parameters
    ----------
    vectors : all experts of the matrix
    store, spectrum_key : where the probes are kept beside the spectrum; a store of None keeps none
    """

    def __init__(self, vectors: TaskVectors, store: Store | None, spectrum_key: str, notes: list[str]) -> None:
        self._recorded = RecordedTaskVectors(vectors)
        self._store, self._key, self._notes = store, spectrum_key, notes
        self._probes: Probes | None = None

    def vectors(self) -> TaskVectors:
        """Return the experts, whose first whole pass is recorded."""
        return self._recorded

    def keep(self) -> None:
        """Write the probes that a pass has recorded, before the spectrum is written."""
        if self._probes is None and self._recorded.probes is not None:
            self._probes = self._recorded.probes
            if self._store is not None:
                write_probes(self._store, self._key, self._probes)

    def probes(self) -> Probes:
        """Return the probes: recorded, or stored; where they are missing or damaged, the experts are read again."""
        self.keep()
        if self._probes is None:
            self._probes = self._stored()
        if self._probes is None:
            for _ in self._recorded:
                pass
            self.keep()
        assert self._probes is not None, "a whole pass records all experts"
        return self._probes

    def measure(self, delta: torch.Tensor | LowRank) -> Measures:
        """Return the measures at a merged delta, (M, K)."""
        return measure(self.probes(), delta)

    def _stored(self) -> Probes | None:
        if self._store is None:
            return None
        try:
            return read_probes(self._store, self._key, self._recorded.shape, self._recorded.num_experts)
        except ObjectNotFoundError:
            return None
        except CorruptObjectError as error:
            self._notes.append(f"{error}; recorded again")
            return None


class MeasuredInputs(ABC):
    """The inputs of a direct method for one tensor, whose experts are measured in the first whole pass over them.

    Abstract base class of the two kinds of measuring: by probes of a matrix, or on a sample of the entries.
    """

    def __init__(self, stream: ExpertStream) -> None:
        self._stream = stream
        self._is_whole = False

    @property
    def name(self) -> str:
        return self._stream.name

    @property
    def seed(self) -> int:
        return self._stream.seed

    @property
    def base(self) -> torch.Tensor | None:
        return self._stream.base

    @property
    def num_experts(self) -> int:
        return self._stream.num_experts

    def is_base(self, index: int) -> bool:
        return self._stream.is_base(index)

    def experts(self) -> Iterator[torch.Tensor]:
        return self._recording(self._stream.experts(), self._stream.base)

    def task_vectors(self) -> Iterator[torch.Tensor]:
        return self._recording(self._stream.task_vectors(), None)

    def measure(self, merged: torch.Tensor) -> Measures | None:
        """Return the measures of the merged weight; None where the method has not read all experts."""
        return self._measures_of(merged) if self._is_whole else None

    @abstractmethod
    def _begin(self) -> None:
        """Forget what an earlier pass has recorded."""

    @abstractmethod
    def _add(self, tensor: torch.Tensor, base: torch.Tensor | None) -> None:
        """Record a task vector, or a weight and the base."""

    @abstractmethod
    def _measures_of(self, merged: torch.Tensor) -> Measures | None: ...

    def _recording(self, tensors: Iterator[torch.Tensor], base: torch.Tensor | None) -> Iterator[torch.Tensor]:
        if self._is_whole:
            yield from tensors
            return
        self._begin()
        for tensor in tensors:
            self._add(tensor, base)
            yield tensor
            del tensor  # a bound name would keep this expert in memory beside the next one
        self._is_whole = True


@final
class ProbedInputs(MeasuredInputs):
    """Inputs that are one matrix, measured by probes."""

    def _begin(self) -> None:
        rows, columns = self._stream.tensor.shape
        self._recorder = Recorder((rows, columns), self.num_experts)

    def _add(self, tensor: torch.Tensor, base: torch.Tensor | None) -> None:
        self._recorder.add(tensor, base)

    def _measures_of(self, merged: torch.Tensor) -> Measures | None:
        probes = self._recorder.probes()
        return None if probes is None else measure(probes, merged, self._stream.base)


@final
class SampledInputs(MeasuredInputs):
    """Inputs of an elementwise method, measured as where it merges block by block."""

    def _begin(self) -> None:
        self._samples: list[torch.Tensor] = []

    def _add(self, tensor: torch.Tensor, base: torch.Tensor | None) -> None:
        sample = sampled_entries(tensor)
        self._samples.append(sample if base is None else sample - sampled_entries(base))

    def _measures_of(self, merged: torch.Tensor) -> Measures | None:
        base = self._stream.base
        if base is None or len(self._samples) != self.num_experts:
            return None
        found = SampledMeasures(merged.numel(), self.num_experts)
        found.add(torch.stack(self._samples), sampled_entries(merged) - sampled_entries(base))
        return found.measures()
