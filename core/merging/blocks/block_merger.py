"""Merge one tensor block by block: from stored numbers to the bytes of the output, each block once in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from ...errors import NonFiniteError
from ...numerics.cast import round_once
from ...numerics.interference.expert_probes import Measures
from ...numerics.linear_algebra import TOO_LARGE
from ...numerics.method import DirectMethod
from ...numerics.registry import get_planned_method
from ...numerics.tensor_inputs import BlockMerge, TensorInputs
from ...planning.plan import TensorPlan
from ...storage.checkpoints.tensor_reader import TensorReader
from ...storage.torch_dtypes import torch_dtype
from .block_stream import BlockStream, NonFiniteBlockError
from .sampled_measures import BLOCK, SampledMeasures, can_sample

_COPY_BLOCK = 1 << 20

Write = Callable[[memoryview], None]


def merge_in_blocks(
    tensor: TensorPlan,
    reader: TensorReader,
    dtype: torch.dtype,
    seed: int,
    write: Write,
    *,
    measures: bool = False,
) -> Measures | None:
    """Merge a tensor that the plan merges in blocks, write the bytes of its output, and return what was measured.

    Parameters
    ----------
    dtype : of the arithmetic
    write : takes consecutive bytes, which are valid during the call
    measures : measure the experts, on a sample of the entries

    Raises
    ------
    NonFiniteError : an input holds NaN or Inf, or a merged value does not fit the output dtype; what was written until
        then is of no use
    """
    stream = BlockStream(tensor, reader, dtype, seed)
    sampled: SampledMeasures | None = None
    try:
        if tensor.action == "copy":
            _copy(tensor, stream, write)
        else:
            if measures and can_sample(tensor):
                sampled = SampledMeasures(stream.num_elements, stream.num_experts)
            _merge(tensor, stream, write, sampled)
        stream.finish()
    finally:
        stream.close()
    return None if sampled is None else sampled.measures()


def _copy(tensor: TensorPlan, stream: BlockStream, write: Write) -> None:
    dtype = torch_dtype(tensor.out_dtype)
    for start in range(0, stream.num_elements, _COPY_BLOCK):
        stored = stream.stored(start, min(start + _COPY_BLOCK, stream.num_elements))
        write(_bytes_of(round_once(stored, dtype)))


def _merge(tensor: TensorPlan, stream: BlockStream, write: Write, sampled: SampledMeasures | None) -> None:
    dtype = torch_dtype(tensor.out_dtype)
    try:
        for values in _merged_blocks(tensor, stream, sampled):
            merged = round_once(values, dtype)
            if not math.isfinite(merged.float().sum().item()) and not bool(torch.isfinite(merged).all()):
                break
            write(_bytes_of(merged))
        else:
            return
    except NonFiniteBlockError:
        stream.check_finite()
        raise
    stream.check_finite()
    raise _does_not_fit(tensor, stream, dtype)


def _merged_blocks(
    tensor: TensorPlan, stream: BlockStream, sampled: SampledMeasures | None = None
) -> Iterator[torch.Tensor]:
    """Yield the merged entries in the arithmetic dtype, block by block."""
    merge_block = _block_merge(tensor, stream)
    for block in stream.blocks(BLOCK):
        vectors = None if sampled is None else sampled.sample(block)
        values = merge_block(block)
        if sampled is not None and vectors is not None and block.base is not None:
            count = vectors.shape[1]
            sampled.add(vectors, values[:count] - block.base[:count])
        yield values


def _block_merge(tensor: TensorPlan, stream: BlockStream) -> BlockMerge:
    if tensor.action == "mean":
        return _mean_of(tensor)
    assert tensor.method is not None, "the planner sets a method for what is merged"
    method = get_planned_method(tensor.method, tensor.method_package)
    assert isinstance(method, DirectMethod), "the planner merges only direct methods in blocks"
    parameters = method.Parameters.model_validate(dict(tensor.parameters))
    experts = [method.Expert.model_validate(dict(expert.parameters)) for expert in tensor.experts]
    return method.merge_in_blocks(stream, parameters, experts)


def _mean_of(tensor: TensorPlan) -> BlockMerge:
    """Return what computes base + scale * mean of the weighted deltas."""
    weights: list[float] = []
    for expert in tensor.experts:
        weight = expert.parameters.get("weight", 1.0)
        assert isinstance(weight, (int, float))
        weights.append(weight)
    scale = tensor.parameters.get("scale", 1.0)
    assert isinstance(scale, (int, float))

    def merge_block(block: TensorInputs) -> torch.Tensor:
        total: torch.Tensor | None = None
        for weight, delta in zip(weights, block.task_vectors(), strict=True):
            total = delta.mul_(weight) if total is None else total.add_(delta, alpha=weight)
        assert total is not None, "a sum needs an expert"
        mean = total.mul_(scale / len(weights))
        return mean if block.base is None else mean.add_(block.base)

    return merge_block


def _does_not_fit(tensor: TensorPlan, stream: BlockStream, dtype: torch.dtype) -> NonFiniteError:
    """Return the error for a merged tensor with NaN or Inf, of which all inputs are finite."""
    num_bad, largest = 0, 0.0
    for values in _merged_blocks(tensor, stream):
        num_bad += int((~torch.isfinite(round_once(values, dtype))).sum())
        highest = float(values.abs().max())
        largest = highest if math.isnan(highest) or highest > largest else largest
    return does_not_fit(tensor.name, num_bad, largest, tensor.out_dtype)


def does_not_fit(name: str, num_bad: int, largest: float, dtype: str) -> NonFiniteError:
    """Return the error for a merged tensor with values that are not finite in the output dtype.

    Parameters
    ----------
    largest : magnitude in the arithmetic dtype; NaN or Inf where the arithmetic overflowed
    """
    if not math.isfinite(largest):
        return NonFiniteError(f"merged tensor {name!r} has {num_bad} NaN or Inf: {TOO_LARGE}")
    return NonFiniteError(
        f"merged tensor {name!r} has {num_bad} values that do not fit {dtype}"
        f" (largest {largest:.3g}); set out_dtype to float32 or bfloat16, or lower the scale"
    )


def _bytes_of(values: torch.Tensor) -> memoryview:
    return memoryview(values.contiguous().view(torch.uint8).numpy().data)
