"""What one tensor costs: bytes read, operations, peak memory, bytes of spectrum. Pure arithmetic on shapes.

The peak is what one worker holds for the tensor beyond the Python process itself: base and one expert, as they come
from the store and in the arithmetic dtype, the method's work space, and the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from ...errors import BudgetError
from ...formats.dtypes import tensor_bytes
from ...listing import TensorSource
from ...numerics.method import DirectMethod, SpectralMethod
from ..plan import ExpertTensor, RunSettings, TensorPlan

# Columns of the Arrow table beside the vectors: value and half a dozen statistics of 8 bytes, and one per expert.
_STATISTICS_PER_DIRECTION = 8


def element_bytes(settings: RunSettings) -> int:
    """Bytes of one element in the arithmetic dtype."""
    return 8 if settings.arithmetic == "float64" else 4


def source_bytes(source: TensorSource | None) -> int:
    """Bytes to read of one stored tensor, its float8 scale included."""
    if source is None:
        return 0
    return source.num_bytes + (source.scale.num_bytes if source.scale is not None else 0)


def expert_bytes(expert: ExpertTensor) -> int:
    """Bytes to read of one expert's contribution."""
    lora = source_bytes(expert.lora.up) + source_bytes(expert.lora.down) if expert.lora is not None else 0
    return source_bytes(expert.full) + lora


def bytes_read(base: TensorSource | None, experts: Iterable[ExpertTensor], passes: int) -> int:
    """Of one tensor: the base once, the experts once in each pass."""
    return source_bytes(base) + passes * sum(map(expert_bytes, experts))


def max_rank(expert: ExpertTensor, shape: tuple[int, int]) -> int:
    """An upper bound on the rank of one expert's task vector, known without reading it."""
    if expert.full is not None:
        return min(shape)
    return min(*shape, expert.lora.down.shape[0]) if expert.lora is not None else 0


def is_low_rank(expert: ExpertTensor) -> bool:
    """True when the task vector comes as factors (or is zero), never as a dense matrix."""
    return expert.full is None


def stored_working_set(base: TensorSource | None, experts: Iterable[ExpertTensor], share: float = 1.0) -> int:
    """Bytes as they come from the store that are held at one time: the base's or the largest expert's.

    share : part of the tensor that is read at a time (one matrix of a stack)
    """
    largest = max([source_bytes(base), *(expert_bytes(expert) for expert in experts)])
    return int(largest * share)


def mean_cost(tensor_shape: tuple[int, ...], num_experts: int) -> float:
    """Operations of base + mean delta."""
    return 3.0 * num_experts * prod(tensor_shape)


def direct_cost(method: DirectMethod[Any, Any], shape: tuple[int, ...], num_experts: int) -> float:
    """Operations of an elementwise method, roughly: a dozen for each element and expert in each pass."""
    return 12.0 * method.passes * num_experts * prod(shape)


def spectral_cost(
    method: SpectralMethod[Any, Any], shape: tuple[int, int], ranks: Sequence[int], low_rank: bool, element: int
) -> tuple[float, int, int]:
    """Operations, peak bytes of the work space and number of directions of one matrix' decomposition."""
    directions = min(shape[1], sum(ranks))
    flops = method.flops(shape, ranks, low_rank) + 2.0 * directions * shape[0] * shape[1]
    return flops, method.peak_elements(shape, ranks, low_rank) * element, directions


def spectrum_bytes(
    shape: tuple[int, int], directions: int, num_experts: int, settings: RunSettings, blocks: int = 2
) -> int:
    """Bytes that the store keeps of one matrix' spectrum.

    blocks : sets of left vectors (the WUDI family keeps two: the target's and the sum's)
    """
    if settings.spectra == "none":
        return 0
    statistics = directions * 8 * (_STATISTICS_PER_DIRECTION + num_experts)
    if settings.spectra == "values":
        return statistics
    chosen = settings.arithmetic if settings.spectra_dtype == "arithmetic" else settings.spectra_dtype
    return statistics + directions * (shape[1] + blocks * shape[0]) * (8 if chosen == "float64" else 4)


def output_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of one tensor as it is written."""
    return tensor_bytes(dtype, shape)


def cast_bytes(shape: tuple[int, ...], dtype: str, element: int) -> int:
    """Bytes of the copy that the cast to the output's dtype makes: none where there is nothing to cast."""
    size = output_bytes(shape, dtype)
    return 0 if size == element * prod(shape) else size


def check_budget(tensors: Iterable[TensorPlan], max_memory: int | None) -> None:
    """Refuse a plan in which a tensor does not fit.

    Raises
    ------
    BudgetError : names the largest tensor, what it needs and the limit
    """
    if max_memory is None:
        return
    worst = max(tensors, key=lambda tensor: tensor.peak_bytes, default=None)
    if worst is not None and worst.peak_bytes > max_memory:
        raise BudgetError(
            f"tensor {worst.name} {list(worst.shape)} needs {worst.peak_bytes} bytes ({worst.peak_bytes / 1e9:.2f} GB)"
            f" at its peak, max_memory is {max_memory} ({max_memory / 1e9:.2f} GB); give it more memory, or keep this"
            f" tensor at the base with a rule {{match: {worst.name!r}, action: keep_base}}"
        )
