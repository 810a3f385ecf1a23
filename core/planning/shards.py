"""Divide the output's tensors into files and layer shards.

A file consists of consecutive shards, a shard of consecutive tensors. Bytes and seconds of a shard are limited, so
that no single shard dominates the run, and a short merge is not divided into more shards than it has seconds of work.
The limits depend on the plan only, not on workers or memory: otherwise a second run with other settings would have
other parts and could not resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from ..formats.dtypes import SCALE_BLOCK_SIZE, element_bytes, tensor_bytes
from ..formats.file_names import WEIGHTS_NAME
from ..formats.safetensors_header import build_header
from .names import natural_key
from .plan import Float8Form, OutputFile, TensorPlan

_MOST_SHARDS = 200  # Prefect records a few hundred tasks of a flow reliably
# A shard costs 0.1 s besides its work: Prefect's task, the part, its record. One of 2 s loses little of it, and little
# work when a run is killed. Short merges get four to eight shards, so that several workers have something to do.
_SHARD_SECONDS = 2.0
_FEWEST_SHARDS, _SHARDS_OF_SHORT_MERGES = 4, 8
_SHORTEST_SHARD_SECONDS = 0.25
_SLACK = 1 + 1e-9  # a sum that equals a limit up to rounding does not exceed it
_LARGEST_SHARD_BYTES = 1024 * 2**20
# The smallest part of an S3 multipart copy. Smaller data, together with what follows it up to this size, passes through
# the assembling process.
_MIN_COPY_BYTES = 5 * 2**20
_METADATA = {"format": "pt"}  # transformers requires it


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """One stored tensor of the output."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Packing:
    """The tensors of each shard, and the files with their shards."""

    shards: tuple[tuple[TensorPlan, ...], ...]
    files: tuple[OutputFile, ...]


def output_entries(tensor: TensorPlan) -> tuple[OutputEntry, ...]:
    """Return the stored tensors of one planned tensor: itself, a float8 weight and its scale, or the two factors
    of an adapter.
    """
    adapter = tensor.adapter
    if tensor.float8 is not None:
        return _float8_entries(tensor, tensor.float8)
    if adapter is None or adapter.full is not None:
        name = tensor.name if adapter is None or adapter.full is None else adapter.full
        return (OutputEntry(name, tensor.out_dtype, tensor.shape, tensor_bytes(tensor.out_dtype, tensor.shape)),)
    assert adapter.down is not None and adapter.up is not None
    rows, columns = reversed(tensor.shape) if adapter.transposed else tensor.shape
    shapes = {adapter.down: (adapter.rank, columns), adapter.up: (rows, adapter.rank)}
    dtype = tensor.out_dtype
    return tuple(OutputEntry(name, dtype, shape, tensor_bytes(dtype, shape)) for name, shape in shapes.items())


def _float8_entries(tensor: TensorPlan, form: Float8Form) -> tuple[OutputEntry, ...]:
    *stack, rows, columns = tensor.shape
    scales = (-(-rows // SCALE_BLOCK_SIZE), -(-columns // SCALE_BLOCK_SIZE)) if form == "block" else (rows, 1)
    name = tensor.name + ("_scale_inv" if form == "block" else "_scale")
    shapes = {tensor.name: (tensor.out_dtype, tensor.shape), name: ("F32", (*stack, *scales))}
    return tuple(OutputEntry(name, dtype, shape, tensor_bytes(dtype, shape)) for name, (dtype, shape) in shapes.items())


def written_bytes(tensor: TensorPlan) -> int:
    """Return the bytes of a tensor in the output."""
    return sum(entry.num_bytes for entry in output_entries(tensor))


def output_header(entries: Iterable[OutputEntry]) -> bytes:
    """Return the safetensors header of a file, or of a shard's part, that holds these tensors in this order."""
    return build_header({entry.name: (entry.dtype, entry.shape) for entry in entries}, _METADATA)


def nominal_seconds(tensor: TensorPlan) -> float:
    """Return the seconds of one tensor on one core, to compare tensors and to divide the work; the same everywhere."""
    written = written_bytes(tensor) + tensor.spectrum_bytes
    return tensor.bytes_read / 1e9 + written / 4e8 + tensor.flops / 2e10


def default_shard_seconds(total_seconds: float) -> float:
    """Return the limit of a shard's nominal seconds: a share of those of all tensors.

    A tensor that takes longer is a shard by itself.
    """
    short = min(_SHARDS_OF_SHORT_MERGES, total_seconds / _SHORTEST_SHARD_SECONDS)
    count = min(_MOST_SHARDS, max(_FEWEST_SHARDS, short, total_seconds / _SHARD_SECONDS))
    return total_seconds / count


def pack_tensors(
    tensors: Sequence[TensorPlan],
    max_file_bytes: int,
    shard_bytes: int | None = None,
    single_name: str = WEIGHTS_NAME,
) -> Packing:
    """Order the tensors, divide them into files and the files into shards.

    Tensors are ordered by name, layers by number. Within a file wider dtypes come first, so that every tensor starts at
    a multiple of its element size, as the format requires. A file ends before the tensor that would exceed its limit; a
    tensor larger than the limit has a file of its own.

    Parameters
    ----------
    max_file_bytes : size limit of a file, without its header
    shard_bytes : size limit of a shard besides that of its seconds; by default 1 GiB
    single_name : name of the file if there is only one; otherwise its number is added to the stem
    """
    ordered = sorted(tensors, key=lambda tensor: natural_key(tensor.name))
    sizes = {tensor.name: written_bytes(tensor) for tensor in tensors}
    limit = shard_bytes or _LARGEST_SHARD_BYTES
    seconds = {tensor.name: nominal_seconds(tensor) for tensor in tensors}
    seconds_limit = default_shard_seconds(fsum(seconds.values()))
    file_groups = [_sort_by_element_size(group) for group in _split_by_bytes(ordered, sizes, max_file_bytes)]
    shards: list[tuple[TensorPlan, ...]] = []
    files: list[OutputFile] = []
    for number, group in enumerate(file_groups, 1):
        first = len(shards)
        # In a smaller file, the first part, which is sent together with the header, would be more than 5%.
        min_bytes = _MIN_COPY_BYTES if sum(sizes[tensor.name] for tensor in group) >= 20 * _MIN_COPY_BYTES else 0
        shards.extend(_pack(group, sizes, seconds, limit, seconds_limit, min_bytes))
        entries = [entry for tensor in group for entry in output_entries(tensor)]
        name = single_name
        if len(file_groups) > 1:
            stem, _, suffix = single_name.rpartition(".")
            name = f"{stem}-{number:05d}-of-{len(file_groups):05d}.{suffix}"
        size = len(output_header(entries)) + sum(entry.num_bytes for entry in entries)
        files.append(OutputFile(name, tuple(range(first, len(shards))), size))
    return Packing(tuple(shards), tuple(files))


def _split_by_bytes(tensors: Sequence[TensorPlan], sizes: Mapping[str, int], limit: int) -> Iterator[list[TensorPlan]]:
    """Yield consecutive tensors of at most `limit` bytes, or one larger tensor. `sizes`: bytes of each, by name."""
    group: list[TensorPlan] = []
    size = 0
    for tensor in tensors:
        more = sizes[tensor.name]
        if group and size + more > limit:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += more
    if group:
        yield group


def _sort_by_element_size(group: list[TensorPlan]) -> list[TensorPlan]:
    # float8 weights have multiples of 4 bytes, so their scales, which follow them, start at one too
    return sorted(group, key=lambda tensor: -max(element_bytes(entry.dtype) for entry in output_entries(tensor)))


def _pack(
    group: Sequence[TensorPlan],
    sizes: Mapping[str, int],
    seconds: Mapping[str, float],
    byte_limit: int,
    seconds_limit: float,
    min_bytes: int,
) -> Iterator[tuple[TensorPlan, ...]]:
    """Yield shards within both limits, except where they would be smaller than `min_bytes`.

    The first shard has at least twice `min_bytes`, because its beginning is sent together with the header.
    """
    complete: tuple[TensorPlan, ...] = ()  # the last complete shard, to which a small remainder is added
    shard: list[TensorPlan] = []
    size, time = 0, 0.0
    for tensor in group:
        more, longer = sizes[tensor.name], seconds[tensor.name]
        enough = size >= (min_bytes if complete else 2 * min_bytes)
        if shard and enough and (size + more > byte_limit or time + longer > seconds_limit * _SLACK):
            if complete:
                yield complete
            complete, shard, size, time = tuple(shard), [], 0, 0.0
        shard.append(tensor)
        size += more
        time += longer
    if complete and size >= min_bytes:
        yield complete
        complete = ()
    if complete or shard:
        yield (*complete, *shard)
