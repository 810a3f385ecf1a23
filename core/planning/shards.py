"""Tensors into layer shards and shards into output files.

A file is a run of shards, a shard is a run of tensors. Shards are bounded in bytes and in operations, so that no worker
is stuck with one long one; the bounds come from the model alone. They do not depend on workers or memory, or a second
run with other settings would have other parts and could not resume.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..formats.dtypes import element_bytes, tensor_bytes
from ..formats.file_names import WEIGHTS_NAME
from ..formats.safetensors_header import HEADER_ALIGNMENT
from .names import natural_key
from .plan import OutputFile, TensorPlan

_SHARDS_AIMED_AT = 200  # Prefect records a few hundred tasks a flow without losing any
_SMALLEST_SHARD_BYTES = 4 * 2**20
_LARGEST_SHARD_BYTES = 1024 * 2**20
# S3 copies a part into a file only from this size on. What is smaller passes through the reducing process, and takes
# what follows it along until both have this size together.
_COPIED_BYTES = 5 * 2**20
_METADATA = {"format": "pt"}  # what transformers asks of a file


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor of the output."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The packing: tensors of each shard, and the files with their shards."""

    shards: tuple[tuple[TensorPlan, ...], ...]
    files: tuple[OutputFile, ...]


def output_entries(tensor: TensorPlan) -> tuple[Entry, ...]:
    """What one planned tensor stores in the output."""
    adapter = tensor.adapter
    if adapter is None or adapter.full is not None:
        name = tensor.name if adapter is None or adapter.full is None else adapter.full
        return (Entry(name, tensor.out_dtype, tensor.shape, tensor_bytes(tensor.out_dtype, tensor.shape)),)
    assert adapter.down is not None and adapter.up is not None
    rows, columns = reversed(tensor.shape) if adapter.transposed else tensor.shape
    shapes = {adapter.down: (adapter.rank, columns), adapter.up: (rows, adapter.rank)}
    dtype = tensor.out_dtype
    return tuple(Entry(name, dtype, shape, tensor_bytes(dtype, shape)) for name, shape in shapes.items())


def written_bytes(tensor: TensorPlan) -> int:
    """Bytes of the tensor in the output."""
    return sum(entry.num_bytes for entry in output_entries(tensor))


def header_bytes(entries: Iterable[Entry]) -> int:
    """Length of the safetensors header in front of these tensors, its 8-byte length field included."""
    content: dict[str, object] = {"__metadata__": _METADATA}
    offset = 0
    for entry in entries:
        content[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.num_bytes],
        }
        offset += entry.num_bytes
    length = 8 + len(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode())
    return length + -length % HEADER_ALIGNMENT


def default_shard_bytes(total_bytes: int) -> int:
    """About 200 shards for a large model, never smaller than 4 MiB or larger than 1 GiB."""
    return max(_SMALLEST_SHARD_BYTES, min(_LARGEST_SHARD_BYTES, -(-total_bytes // _SHARDS_AIMED_AT)))


def lay_out(
    tensors: Sequence[TensorPlan],
    max_file_bytes: int,
    shard_bytes: int | None = None,
    single_name: str = WEIGHTS_NAME,
) -> Layout:
    """Order the tensors, cut the run into files and the files into shards.

    The order is by layer, in the number's sense; within a file wider dtypes come first, so that every tensor lies at a
    multiple of its element size as the format asks. A file is closed when the next tensor would make it too large; a
    tensor that is larger than a file has one alone.
    """
    ordered = sorted(tensors, key=lambda tensor: natural_key(tensor.name))
    limit = shard_bytes or default_shard_bytes(sum(map(written_bytes, tensors)))
    longest = max((tensor.flops for tensor in tensors), default=0.0)
    flops_limit = max(longest, sum(tensor.flops for tensor in tensors) / _SHARDS_AIMED_AT)
    file_groups = [_aligned(group) for group in _runs_by_bytes(ordered, max_file_bytes)]
    shards: list[tuple[TensorPlan, ...]] = []
    files: list[OutputFile] = []
    for number, group in enumerate(file_groups, 1):
        first = len(shards)
        # Of a smaller file the first part alone, which is sent with the header, is more than 5%.
        smallest = _COPIED_BYTES if sum(map(written_bytes, group)) >= 20 * _COPIED_BYTES else 0
        shards.extend(_pack(group, limit, flops_limit, smallest))
        entries = [entry for tensor in group for entry in output_entries(tensor)]
        name = single_name
        if len(file_groups) > 1:
            stem, _, suffix = single_name.rpartition(".")
            name = f"{stem}-{number:05d}-of-{len(file_groups):05d}.{suffix}"
        size = header_bytes(entries) + sum(entry.num_bytes for entry in entries)
        files.append(OutputFile(name, tuple(range(first, len(shards))), size))
    return Layout(tuple(shards), tuple(files))


def _runs_by_bytes(tensors: Sequence[TensorPlan], limit: int) -> Iterator[list[TensorPlan]]:
    group: list[TensorPlan] = []
    size = 0
    for tensor in tensors:
        more = written_bytes(tensor)
        if group and size + more > limit:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += more
    if group:
        yield group


def _aligned(group: list[TensorPlan]) -> list[TensorPlan]:
    return sorted(group, key=lambda tensor: -element_bytes(tensor.out_dtype))


def _pack(
    group: Sequence[TensorPlan], byte_limit: int, flops_limit: float, smallest: int
) -> Iterator[tuple[TensorPlan, ...]]:
    """Shards within both limits, except where they would be below `smallest` bytes.

    The first has twice as much: the header is filled up from it to the size of a part.
    """
    waiting: tuple[TensorPlan, ...] = ()  # the last finished shard, to which a small rest is added
    shard: list[TensorPlan] = []
    size, flops = 0, 0.0
    for tensor in group:
        more = written_bytes(tensor)
        enough = size >= (smallest if waiting else 2 * smallest)
        if shard and enough and (size + more > byte_limit or flops + tensor.flops > flops_limit):
            if waiting:
                yield waiting
            waiting, shard, size, flops = tuple(shard), [], 0, 0.0
        shard.append(tensor)
        size += more
        flops += tensor.flops
    if waiting and size >= smallest:
        yield waiting
        waiting = ()
    if waiting or shard:
        yield (*waiting, *shard)
