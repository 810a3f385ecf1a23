"""Costs of one tensor, computed from shapes: bytes read, operations, peak memory, bytes of its spectrum.

The peak memory is that of one worker for the tensor, without the Python process itself: base and one expert, as stored
and in the arithmetic dtype, the method's work space, and the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from pydantic import ByteSize

from ...errors import BudgetError
from ...formats.dtypes import element_bytes, safetensors_name, tensor_bytes
from ...listing import TensorSource
from ...numerics.method import DirectMethod, SpectralMethod
from ...views import has_scale, held_bytes, stored_tensors
from ..plan import Cut, ExpertTensor, MatrixView, RunSettings, TensorPlan

# Columns of 8 bytes in a spectrum besides the vectors: the value and seven statistics; one more per expert.
_STATISTICS_PER_DIRECTION = 8


def arithmetic_bytes(settings: RunSettings, arithmetic: str | None = None) -> int:
    """Return the bytes of one element in the arithmetic dtype: that of a tensor if it differs, or else the run's."""
    return element_bytes(safetensors_name(arithmetic or settings.arithmetic))


def source_bytes(source: TensorSource | None) -> int:
    """Return the bytes to read of one stored tensor, its float8 scale included; 0 for None."""
    if source is None:
        return 0
    return source.num_bytes + (source.scale.num_bytes if source.scale is not None else 0)


def expert_bytes(expert: ExpertTensor) -> int:
    """Return the bytes to read of one expert's tensor."""
    return source_bytes(expert.full) + _lora_bytes(expert)


def _lora_bytes(expert: ExpertTensor) -> int:
    """Return the stored bytes of the factors. The matrices of a stack can share one tensor, which counts once."""
    sources = expert.lora.sources if expert.lora is not None else ()
    return sum(one.num_bytes for one in {one for source in sources for one in stored_tensors(source)})


def bytes_read(base: TensorSource | None, experts: Iterable[ExpertTensor], passes: int) -> int:
    """Return the bytes to read of one output tensor: the base once, every expert once per pass."""
    return source_bytes(base) + passes * sum(map(expert_bytes, experts))


def max_rank(expert: ExpertTensor, shape: tuple[int, int], cut: Cut | MatrixView | None = None) -> int:
    """Return an upper bound on the rank of one expert's task vector in one matrix of the tensor."""
    if expert.full is not None:
        return min(shape)
    return min(*shape, expert.lora.rank_in(cut)) if expert.lora is not None else 0


def is_low_rank(expert: ExpertTensor) -> bool:
    """Return whether the task vector is given as factors, or is zero."""
    return expert.full is None


def stored_working_set(base: TensorSource | None, experts: Iterable[ExpertTensor]) -> int:
    """Return the bytes in stored dtypes that are held at one time: those of the base or of the largest expert."""
    return max([held_bytes(base) if base is not None else 0, *map(_held_by_expert, experts)])


def _held_by_expert(expert: ExpertTensor) -> int:
    held = _lora_bytes(expert) + (held_bytes(expert.full) if expert.full is not None else 0)
    if (expert.rounded or expert.noise) and expert.full is not None and has_scale(expert.full):
        # the scale of every element, float32, the float8 ones it is made of, and a copy while it is spread or joined
        held += 9 * prod(expert.full.shape)
    return held


def mean_cost(tensor_shape: tuple[int, ...], num_experts: int) -> float:
    """Return the operations of base + mean delta."""
    return 3.0 * num_experts * prod(tensor_shape)


def direct_cost(method: DirectMethod[Any, Any], shape: tuple[int, ...], num_experts: int) -> float:
    """Return the approximate operations of a direct method: 12 per element and expert in each pass."""
    return 12.0 * method.passes * num_experts * prod(shape)


def spectral_cost(
    method: SpectralMethod[Any, Any],
    shape: tuple[int, int],
    ranks: Sequence[int],
    low_rank: bool,
    bytes_per_element: int,
) -> tuple[float, int, int]:
    """Return operations, peak bytes of the work space and number of directions of one matrix's decomposition.

    Parameters
    ----------
    ranks : upper bound on the rank of each expert's task vector
    bytes_per_element : of the arithmetic dtype
    """
    directions = min(shape[1], sum(ranks))
    flops = method.flops(shape, ranks, low_rank) + 2.0 * directions * shape[0] * shape[1]
    return flops, method.peak_elements(shape, ranks, low_rank) * bytes_per_element, directions


def gpu_solver_bytes(directions: int, bytes_per_element: int) -> int:
    """Return the bytes to add to those of `spectral_cost`, which counts LAPACK's work space, on a GPU.

    cuSOLVER uses 5 n^2 elements beyond the input for n from 1024 to 28672, LAPACK 4 n^2 (docs/scale.md).
    """
    return directions * directions * bytes_per_element


def spectrum_bytes(
    shape: tuple[int, int],
    directions: int,
    num_experts: int,
    settings: RunSettings,
    blocks: int = 2,
    top: int | None = None,
) -> int:
    """Return the bytes that the store keeps of one matrix's spectrum.

    Parameters
    ----------
    blocks : sets of left vectors: two for the WUDI family (the target's and the sum's), one for other methods
    top : number of directions whose vectors are kept, at most; None for all
    """
    if settings.spectra == "none":
        return 0
    statistics = directions * 8 * (_STATISTICS_PER_DIRECTION + num_experts)
    if settings.spectra == "values":
        return statistics
    chosen = settings.arithmetic if settings.spectra_dtype == "arithmetic" else settings.spectra_dtype
    kept = directions if top is None else min(top, directions)
    vectors = kept * (shape[1] + blocks * shape[0]) * element_bytes(safetensors_name(chosen))
    return statistics + vectors + (0 if top is None else statistics * kept // directions)  # beside the vectors again


def cast_bytes(shape: tuple[int, ...], dtype: str, bytes_per_element: int) -> int:
    """Return the bytes of the copy that the cast to the output's dtype makes; 0 where the element size is the same."""
    size = tensor_bytes(dtype, shape)
    return 0 if size == bytes_per_element * prod(shape) else size


def check_budget(tensors: Iterable[TensorPlan], max_memory: int | None) -> None:
    """Check that every tensor fits the memory of one worker, in bytes.

    Raises
    ------
    BudgetError : names the largest tensor, its peak and the limit
    """
    if max_memory is None:
        return
    worst = max(tensors, key=lambda tensor: tensor.peak_bytes, default=None)
    if worst is not None and worst.peak_bytes > max_memory:
        raise BudgetError(
            f"tensor {worst.name} {list(worst.shape)} needs {worst.peak_bytes} bytes ({_readable(worst.peak_bytes)}) at"
            f" its peak, max_memory is {max_memory} ({_readable(max_memory)}); give it more memory, or keep the base's"
            f" tensor with a rule {{match: {worst.name!r}, action: keep_base}}"
        )


def _readable(num_bytes: int) -> str:
    """Return a size such as "1.3GB", in units of 1000."""
    return ByteSize(num_bytes).human_readable(decimal=True)
