"""Which tensors are merged block by block, and the memory that this takes.

A method of which an entry of the result depends on the same entry of base and experts needs some blocks in memory, and
no whole tensor: from the stored dtypes to the output's. Selections by magnitude and norms are found in passes before.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from ...formats.dtypes import element_bytes, safetensors_name, tensor_bytes
from ...listing import TensorSource
from ...numerics.method import DirectMethod
from ...numerics.registry import get_planned_method
from ..plan import RunSettings, TensorPlan
from .experts_ahead import is_remote

_DTYPES = frozenset({"F64", "F32", "BF16", "F16"})
# Smaller tensors fit the cache as they are, and selections by magnitude sort them.
_SMALLEST_ELEMENTS = 2**16
# Blocks of 2^18 elements in the arithmetic dtype and as 64-bit integers at one time, with work space.
_BLOCK_ELEMENTS = 2**18
_NUM_BLOCKS = 12
_WINDOW_BYTES = 32 * 2**20  # of a request to a remote store, in parallel pieces of 8 MiB
_ALL_WINDOWS_BYTES = 256 * 2**20  # of all sources of a tensor together
_SMALLEST_WINDOW_BYTES = 4 * 2**20
_WINDOW_STEP_BYTES = 4096  # no element is divided between two windows


def plan_blocks(tensor: TensorPlan, settings: RunSettings) -> TensorPlan:
    """Return the plan with `in_blocks` and its peak memory where merging block by block takes less memory."""
    if settings.device != "cpu" or prod(tensor.shape) <= _SMALLEST_ELEMENTS or not _has_plain_inputs(tensor):
        return tensor
    if tensor.action == "copy":
        assert tensor.base is not None
        work = 0
    else:
        method = _direct_method(tensor)
        if method is None and tensor.action != "mean":
            return tensor
        work = _work_bytes(tensor, settings, method)
    if settings.allow_nonfinite:
        work += tensor_bytes(tensor.out_dtype, tensor.shape)  # nothing is written before all is known to be finite
    peak = work + _NUM_BLOCKS * _BLOCK_ELEMENTS * 8 + sum(_held_bytes(tensor, source) for source in _sources(tensor))
    return replace(tensor, in_blocks=True, peak_bytes=peak) if peak < tensor.peak_bytes else tensor


def window_bytes(tensor: TensorPlan, source: TensorSource) -> int:
    """Return the bytes of one request for a remote source: the whole tensor where it is read more than once."""
    method = _direct_method(tensor)
    if method is not None and method.block_passes(_parameters(tensor, method)) > 1:
        return max(1, source.num_bytes)
    share = _ALL_WINDOWS_BYTES // (2 * len(_sources(tensor)))  # the next one is read ahead
    return max(_SMALLEST_WINDOW_BYTES, min(_WINDOW_BYTES, share - share % _WINDOW_STEP_BYTES))


def _has_plain_inputs(tensor: TensorPlan) -> bool:
    """Return whether base and experts are stored tensors with the shape of the output, entry by entry."""
    if tensor.adapter is not None or tensor.float8 is not None or tensor.calibration or tensor.views:
        return False
    if tensor.sums_key is not None or tensor.spectrum_key is not None:
        return False
    if tensor.base_rows is not None or tensor.token_rows or tensor.padding_start is not None:
        return False
    if tensor.matrix_shape is not None or tensor.in_out:
        return False
    if any(expert.full is None or expert.lora is not None or expert.rows is not None for expert in tensor.experts):
        return False
    return all(
        source.view is None and source.scale is None and source.shape == tensor.shape and source.dtype in _DTYPES
        for source in _sources(tensor)
    )


def _direct_method(tensor: TensorPlan) -> DirectMethod[Any, Any] | None:
    if tensor.action != "merge" or tensor.method is None:
        return None
    method = get_planned_method(tensor.method, tensor.method_package)
    if not isinstance(method, DirectMethod):
        return None
    return method if method.fits_blocks(tensor.shape) else None


def _parameters(tensor: TensorPlan, method: DirectMethod[Any, Any]) -> Any:
    return method.Parameters.model_validate(dict(tensor.parameters))


def _work_bytes(tensor: TensorPlan, settings: RunSettings, method: DirectMethod[Any, Any] | None) -> int:
    if method is None:
        return 0
    size = element_bytes(safetensors_name(tensor.arithmetic or settings.arithmetic))
    return method.block_work_bytes(prod(tensor.shape), len(tensor.experts), size)


def _sources(tensor: TensorPlan) -> list[TensorSource]:
    experts = [expert.full for expert in tensor.experts if expert.full is not None]
    return experts if tensor.base is None else [tensor.base, *experts]


def _held_bytes(tensor: TensorPlan, source: TensorSource) -> int:
    """Return the bytes of a source that are in memory in its stored dtype: a block of a file, or two windows."""
    if not is_remote(source):
        return min(source.num_bytes, _BLOCK_ELEMENTS * element_bytes(source.dtype))
    return min(source.num_bytes, 2 * window_bytes(tensor, source))
