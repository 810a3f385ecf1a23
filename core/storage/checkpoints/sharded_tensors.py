"""Tensors whose parts are in several files, as PyTorch's distributed checkpointing writes them.

`HuggingFaceStorageWriter(save_distributed=True)` writes one set of files per process. A file holds the part of each
tensor that the process had, and its header states where the part begins in the whole tensor:
`__metadata__["DCP_SHARDING_INFO"] = {name: {"saved_offsets": [row, column, ...]}}` (torch.distributed.checkpoint,
_hf_utils.py). The size of the whole tensor is not stated; it is where the last part ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import cast

from ...errors import CheckpointError
from ...formats.bounded_json import parse_json_object
from ...formats.dtypes import FLOAT8_DTYPES
from ...formats.safetensors_header import LONGEST_HEADER_BYTES, SafetensorsHeader
from ...listing import TensorSource
from ...views import concatenate

_INFO = "DCP_SHARDING_INFO"
_OFFSETS = "saved_offsets"


@dataclass(frozen=True, slots=True)
class TensorPart:
    """A stored part of a tensor.

    file : name, for messages
    offsets : where the part begins in each dimension of the whole tensor
    """

    file: str
    offsets: tuple[int, ...]
    source: TensorSource

    @property
    def stops(self) -> tuple[int, ...]:
        """Where the part ends in each dimension of the whole tensor."""
        return tuple(start + size for start, size in zip(self.offsets, self.source.shape, strict=True))


def part_offsets(header: SafetensorsHeader, file: str) -> Mapping[str, tuple[int, ...]] | None:
    """Return where each tensor of a file begins in the whole tensor, None for a file that says nothing about it.

    Raises
    ------
    CheckpointError : a tensor of the file has no offsets, or not one for each dimension
    """
    text = header.metadata.get(_INFO)
    if text is None:
        return None
    info = parse_json_object(text.encode(), f"{_INFO} of {file}", LONGEST_HEADER_BYTES)
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in header.tensors.items():
        stated: object = info.get(name)
        offsets: object = cast("dict[str, object]", stated).get(_OFFSETS) if isinstance(stated, dict) else None
        values = cast("list[object]", offsets) if isinstance(offsets, list) else []
        if offsets is None or len(values) != len(entry.shape) or not all(type(v) is int and v >= 0 for v in values):
            raise CheckpointError(
                f"{file}: tensor {name[:200]!r} has {json.dumps(info.get(name))[:100]} in {_INFO}, expected {_OFFSETS}"
                f" with one number for each of its {len(entry.shape)} dimensions; save the checkpoint again"
            )
        found[name] = tuple(cast("list[int]", values))
    return found


def join_parts(name: str, parts: Sequence[TensorPart], folder: str) -> TensorSource:
    """Return a tensor that is made of all its parts; a tensor with one part is that stored tensor.

    Parameters
    ----------
    folder : address of the files, for messages

    Raises
    ------
    CheckpointError : the parts overlap, leave a gap, differ in dtype or number of dimensions, or are not a grid
    """
    where = f"{folder}: tensor {name[:200]!r}"
    first = parts[0]
    for part in parts:
        found, expected = ((one.source.dtype, len(one.offsets)) for one in (part, first))
        if found != expected:
            raise CheckpointError(
                f"{where} is {found[0]} with {found[1]} dimensions in {part.file} and {expected[0]} with {expected[1]}"
                f" in {first.file}; the files come from different checkpoints: remove the stale ones"
            )
    shape = tuple(max(part.stops[dim] for part in parts) for dim in range(len(first.offsets)))
    # A process whose share is empty writes a part without entries.
    filled = [part for part in parts if prod(part.source.shape)] or [first]
    return _cover(where, filled, (0,) * len(shape), shape)


def check_scales(tensors: Mapping[str, TensorSource], folder: str) -> None:
    """Check that no float8 weight in several parts has scales, which count the rows of the whole weight.

    Raises
    ------
    CheckpointError : one has
    """
    for name, source in tensors.items():
        if source.view is None or source.dtype not in FLOAT8_DTYPES:
            continue
        if any(name + suffix in tensors for suffix in ("_scale", "_scale_inv")):
            raise CheckpointError(
                f"{folder}: tensor {name[:200]!r} is float8 with scales and is in several files, which is not"
                " supported; consolidate the files first (torch.distributed.checkpoint.consolidate_safetensors_files)"
            )


def _cover(where: str, parts: Sequence[TensorPart], starts: tuple[int, ...], stops: tuple[int, ...]) -> TensorSource:
    """Return the box [starts, stops) of a tensor from parts that must fill it: cut it along the first possible dim."""
    if len(parts) == 1 and (parts[0].offsets, parts[0].stops) == (starts, stops):
        return parts[0].source
    for dim in range(len(starts)):
        groups = list(_groups(parts, dim))
        if len(groups) == 1:
            continue
        # The last group ends where the box ends; each other one where the next begins.
        edges = [starts[dim], *(min(part.offsets[dim] for part in group) for group in groups[1:]), stops[dim]]
        pieces = [
            _cover(where, group, _set(starts, dim, first), _set(stops, dim, last))
            for group, (first, last) in zip(groups, pairwise(edges), strict=True)
        ]
        return concatenate(pieces, dim)
    raise _cover_error(where, parts, starts, stops)


def _groups(parts: Sequence[TensorPart], dim: int) -> Iterator[list[TensorPart]]:
    """Yield the parts in groups between which the tensor can be cut along `dim`."""
    group: list[TensorPart] = []
    end = 0
    for part in sorted(parts, key=lambda part: part.offsets[dim]):
        if group and part.offsets[dim] >= end:
            yield group
            group = []
        group.append(part)
        end = max(end, part.stops[dim])
    yield group


def _cover_error(
    where: str, parts: Sequence[TensorPart], starts: tuple[int, ...], stops: tuple[int, ...]
) -> CheckpointError:
    for number, one in enumerate(parts):
        for other in parts[:number]:
            spans = zip(one.offsets, one.stops, other.offsets, other.stops, strict=True)
            if all(start < other_stop and other_start < stop for start, stop, other_start, other_stop in spans):
                return CheckpointError(
                    f"{where}: its parts in {other.file} and {one.file} overlap (they begin at {list(other.offsets)}"
                    f" and {list(one.offsets)}); the files come from two checkpoints: remove the stale ones"
                )
    box = prod(stop - start for start, stop in zip(starts, stops, strict=True))
    filled = sum(prod(part.source.shape) for part in parts)
    if filled == box:
        return CheckpointError(
            f"{where}: its {len(parts)} parts are no grid, which is not supported; consolidate the files first"
            " (torch.distributed.checkpoint.consolidate_safetensors_files)"
        )
    return CheckpointError(
        f"{where} is incomplete: from {list(starts)} to {list(stops)} the files hold {filled} of {box} entries; a file"
        " is missing: copy all files of the checkpoint again"
    )


def _set(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])
