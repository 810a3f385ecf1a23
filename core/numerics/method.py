"""Base classes of merge methods, their parameters and the protocol of their inputs.

A *spectral* method is a decomposition (expensive, cached under its own key) and a filter (cheap). A *direct* method
computes the merged tensor itself (linear, ties, slerp, ...) and reads the experts in every run. A method is one
concrete subclass, in a file of `methods/` or in an installed package (docs/own-method.md).

Shapes: M = out features (D1), K = in features (D2), N = experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from .apply_filter import Factors
from .lazy_torch import torch
from .spectrum import Spectrum
from .task_vectors import LowRank, TaskVectors, TransposedTaskVectors
from .tensor_inputs import BlockMerge, BlockwiseInputs, TensorInputs

# For packages with methods of their own; `eigenmerge` exports the same names (docs/own-method.md).
__all__ = [
    "AnyMethod",
    "DirectMethod",
    "ExpertParameters",
    "Factors",
    "LowRank",
    "Method",
    "MethodParameters",
    "SpectralMethod",
    "SpectralParameters",
    "Spectrum",
    "TaskVectors",
    "TensorInputs",
]


class MethodParameters(BaseModel):
    """Base class of a method's parameters, named as in the recipe. Every field has a description.

    Unknown names are errors, and so are NaN and infinity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SpectralParameters(MethodParameters):
    """Parameters that every spectral method has."""

    scale: float = Field(1.0, description="factor on the merged delta before it is added to the base")


class ExpertParameters(MethodParameters):
    """Parameters of one expert: in a recipe under `models[].parameters`, or under `parameters` for all experts."""

    weight: float = Field(1.0, description="factor on this expert's task vector")


@dataclass(frozen=True, slots=True)
class Side:
    """One decomposition of a weight, over its inputs (columns) or over its outputs (rows).

    over_outputs : the task vectors are transposed before they are decomposed, and the merged delta is transposed back
    share : factor of this merged delta in the result; those of all sides of a weight add up to 1
    """

    over_outputs: bool = False
    share: float = 1.0

    def shape_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of the matrices that are decomposed, for a weight of shape (M, K)."""
        return (shape[1], shape[0]) if self.over_outputs else shape

    def task_vectors_of(self, task_vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors that are decomposed."""
        return TransposedTaskVectors(task_vectors) if self.over_outputs else task_vectors


P = TypeVar("P", bound=MethodParameters)
E = TypeVar("E", bound=MethodParameters)


class Method(ABC, Generic[P, E]):
    """Common base; define a SpectralMethod or a DirectMethod."""

    name: ClassVar[str]  # as in a recipe
    summary: ClassVar[str]  # one line
    source: ClassVar[str]  # arXiv number, DOI or URL, or the tool that defines it
    aliases: ClassVar[tuple[str, ...]] = ()
    Parameters: ClassVar[type[MethodParameters]]
    Expert: ClassVar[type[MethodParameters]] = ExpertParameters
    min_experts: ClassVar[int] = 1
    max_experts: ClassVar[int | None] = None
    other_experts: ClassVar[int | None] = None  # exact number of experts, not counting the base
    order_matters: ClassVar[bool] = False  # True: the order of the experts is part of the keys

    #: Part of the keys: increase it when the method's results change.
    algorithm_version: ClassVar[int] = 1
    #: "name version" of the installed package that defines the method, set when it is loaded; None: built-in.
    package: str | None = None


class SpectralMethod(Method[P, E]):
    """A decomposition and a filter, for 2-D weights. Other tensors get the mean delta, or what a rule sets."""

    @abstractmethod
    def decomposition(self, parameters: P) -> Mapping[str, object]:
        """Return what identifies the decomposition: {"kind": ..., and each parameter that `decompose` depends on}.

        JSON-able. Built-in methods that return equal mappings share cached spectra (swudi, swudi_a and wudi_pinv do).
        """

    @abstractmethod
    def decompose(self, task_vectors: TaskVectors, parameters: P) -> Spectrum:
        """Decompose one weight from its task vectors, which are already multiplied by the experts' weights."""

    @abstractmethod
    def factors(self, spectrum: Spectrum, parameters: P) -> Factors:
        """Return one factor per direction and block.

        May use `values`, `statistics`, `info`, `shape` and `num_experts` of the spectrum, not its vectors: they are
        read later, and only those with a factor other than 0.
        """

    def sides(self, parameters: P, shape: tuple[int, int]) -> tuple[Side, ...]:
        """Return over which sides a weight of shape (M, K) is decomposed; `decompose` gets transposed task vectors.

        The merged delta is the sum of the sides' deltas, each multiplied by its share.
        """
        return (Side(),)

    def needs_float64(self, parameters: P) -> bool:
        """Return True where the filter multiplies the rounding of float32 so much that the result would be wrong.

        The weight is then read, decomposed and filtered in float64, whatever the recipe's arithmetic.
        """
        return False

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        """Return the projected floating point operations of `decompose`; override it where this default is far off.

        Parameters
        ----------
        shape : (M, K)
        max_ranks : upper bound of each expert's rank; min(M, K) for a dense one
        all_low_rank : True where every expert is given as LoRA factors
        """
        rows, columns = shape
        return 4.0 * len(max_ranks) * rows * columns * columns + 9.0 * columns**3

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        """Return the projected peak number of elements (arithmetic dtype) of `decompose` and of applying the factors.

        Task vectors, spectrum and result are included. Parameters as in `flops`.
        """
        rows, columns = shape
        return 6 * rows * columns + 5 * columns * columns


class DirectMethod(Method[P, E]):
    """A method on whole tensors of any shape."""

    needs_base: ClassVar[bool] = True  # False: works without base_model (linear, slerp, passthrough)
    passes: ClassVar[int] = 1  # number of times that the experts are read
    #: True: a merged entry depends on this entry of the base and of the experts alone, in the same order of operations
    #: for every shape. `merge` is then called with blocks of a tensor, flat, instead of the whole tensor.
    elementwise: ClassVar[bool] = False
    #: True: `merge_in_blocks` is implemented, because thresholds, norms or masks are found in the whole tensor first.
    has_block_form: ClassVar[bool] = False

    @abstractmethod
    def merge(self, inputs: TensorInputs, parameters: P, experts: Sequence[E]) -> torch.Tensor:
        """Return the full merged tensor, base included, in the arithmetic dtype.

        `experts[i]` are the parameters of expert i.
        """

    def merge_in_blocks(self, inputs: BlockwiseInputs, parameters: P, experts: Sequence[E]) -> BlockMerge:
        """Return what merges one block after the other, in their order, to exactly the bytes of `merge`.

        May go through the blocks of `inputs` before, several times. Called where `elementwise` or `has_block_form` is
        true.
        """
        assert self.elementwise, self.name

        def merge_block(block: TensorInputs) -> torch.Tensor:
            return self.merge(block, parameters, experts)

        return merge_block

    def fits_blocks(self, shape: Sequence[int]) -> bool:
        """Return whether `merge_in_blocks` takes tensors of a shape, where the method has it."""
        return self.elementwise or self.has_block_form

    def block_passes(self, parameters: P) -> int:
        """Return how often `merge_in_blocks` and merging read the experts; the second time they may be in memory."""
        return 1

    def block_work_bytes(self, num_elements: int, num_experts: int, element_bytes: int) -> int:
        """Return the projected bytes that `merge_in_blocks` holds besides some blocks: masks, histograms."""
        return 0

    def peak_tensors(self, num_experts: int) -> float:
        """Return the projected peak memory in full tensors of the arithmetic dtype, inputs and result included."""
        return 5.0

    def peak_elements(self, num_elements: int, num_experts: int) -> int:
        """Return the same in elements; override it where the peak is not proportional to the tensor."""
        return int(self.peak_tensors(num_experts) * num_elements)


AnyMethod = SpectralMethod[Any, Any] | DirectMethod[Any, Any]
