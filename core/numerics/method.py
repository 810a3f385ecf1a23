"""What a merge method is. One file in `methods/` defines one (or one family), and is found without being told.

Two kinds. A *spectral* method is a decomposition (expensive, cached under its own key) and a filter (cheap). A *direct*
method works on the tensors themselves (linear, ties, slerp, ...) and reads the experts each time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from .lazy_torch import torch
from .spectrum import Factors, Spectrum
from .task_vectors import TaskVectors


class MethodParameters(BaseModel):
    """Parameters of a method, named as in the recipe. Every field has a description; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SpectralParameters(MethodParameters):
    """What every spectral method takes."""

    scale: float = Field(1.0, description="factor on the merged delta before it is added to the base")


class ExpertParameters(MethodParameters):
    """Per-expert parameters; in a recipe they stand under `models[].parameters` (or globally, for all experts)."""

    weight: float = Field(1.0, description="factor on this expert's task vector")


P = TypeVar("P", bound=MethodParameters)
E = TypeVar("E", bound=MethodParameters)


class Method(ABC, Generic[P, E]):
    """Abstract: use SpectralMethod or DirectMethod."""

    name: ClassVar[str]  # the published name, as in a recipe
    summary: ClassVar[str]  # one line
    source: ClassVar[str]  # arXiv number, DOI or the tool whose convention it is
    aliases: ClassVar[tuple[str, ...]] = ()
    Parameters: ClassVar[type[MethodParameters]]
    Expert: ClassVar[type[MethodParameters]] = ExpertParameters
    min_experts: ClassVar[int] = 1
    max_experts: ClassVar[int | None] = None
    other_experts: ClassVar[int | None] = None  # exactly so many beside the base, which may or may not be listed
    order_matters: ClassVar[bool] = False  # True: the order of the experts is part of the keys


class SpectralMethod(Method[P, E]):
    """A decomposition and a filter. Only 2-D weights; other tensors take the mean delta, or what a rule says."""

    #: bump when the numbers that `decompose` returns change: it is part of every spectrum key
    algorithm_version: ClassVar[int] = 1

    @abstractmethod
    def decomposition(self, parameters: P) -> Mapping[str, object]:
        """What identifies the decomposition: {"kind": ..., plus those parameters that it depends on}.

        Two methods that return the same mapping share cached spectra (swudi, swudi_a, wudi_pinv do).
        """

    @abstractmethod
    def decompose(self, task_vectors: TaskVectors, parameters: P) -> Spectrum:
        """Streams the experts; weights are already folded into the task vectors."""

    @abstractmethod
    def factors(self, spectrum: Spectrum, parameters: P) -> Factors:
        """One factor per direction; needs no vectors: only `values`, `statistics`, `info`, shape and num_experts."""

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        """Projected floating point operations of `decompose`; override where this default is far off."""
        rows, columns = shape
        return 4.0 * len(max_ranks) * rows * columns * columns + 9.0 * columns**3

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        """Projected peak number of elements (arithmetic dtype) that decompose + apply hold, all included."""
        rows, columns = shape
        return 6 * rows * columns + 5 * columns * columns


class TensorInputs(Protocol):
    """What a direct method gets for one tensor, any shape; iterable more than once, one expert at a time.

    All tensors come in the arithmetic dtype (float32 or float64) on the device. `base` is None when the recipe has
    none.
    """

    @property
    def name(self) -> str:
        """Output tensor name: seeds random methods, so that results do not depend on the order of work."""
        ...

    @property
    def seed(self) -> int: ...
    @property
    def base(self) -> torch.Tensor | None: ...
    @property
    def num_experts(self) -> int: ...
    def experts(self) -> Iterator[torch.Tensor]:
        """The experts' full tensors, in recipe order (the base is not among them unless the recipe lists it)."""
        ...

    def task_vectors(self) -> Iterator[torch.Tensor]:
        """expert - base, dense, NOT multiplied by any weight (direct methods apply their own)."""
        ...

    def is_base(self, index: int) -> bool:
        """True when expert `index` is the base model itself: mergekit lists it among the models of some methods."""
        ...


class DirectMethod(Method[P, E]):
    """Works on tensors of any shape; returns the full merged tensor (base included), arithmetic dtype."""

    needs_base: ClassVar[bool] = True  # False: works without base_model (linear, slerp, passthrough)
    passes: ClassVar[int] = 1  # times the experts are read

    @abstractmethod
    def merge(self, inputs: TensorInputs, parameters: P, experts: Sequence[E]) -> torch.Tensor:
        """`experts[i]` are the per-expert parameters of expert i."""

    def peak_tensors(self, num_experts: int) -> float:
        """Projected peak memory in full tensors of the arithmetic dtype, inputs and result included."""
        return 5.0

    def peak_elements(self, num_elements: int, num_experts: int) -> int:
        """The same in elements; override where it is not proportional to the tensor."""
        return int(self.peak_tensors(num_experts) * num_elements)


@dataclass(frozen=True, slots=True)
class MethodCard:
    """What `eigenmerge methods` prints of one method."""

    name: str
    summary: str
    source: str
    parameters: Mapping[str, str]
