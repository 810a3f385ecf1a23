"""Parser and writer of safetensors headers.

A file starts with 8 bytes, the little-endian length of the header; then the header, JSON padded with spaces; then the
data. The parser enforces the rules of the format, because offsets from outside decide what is read: no duplicate
names, no overlap, no gap, nothing beyond the end. It allocates no more than the header that is really in the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard, cast

from ..errors import CheckpointError
from .bounded_json import parse_json_object
from .dtypes import DTYPES, tensor_bytes

LENGTH_BYTES = 8
# One page. Tensors of real models are whole pages too, so files can be joined and memory-mapped without moving bytes.
HEADER_ALIGNMENT = 4096
LONGEST_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_MOST_DIMENSIONS = 64
_MOST_TENSORS = 100_000  # the largest files of mixtures of experts have some thousand; each takes about 1 KB of memory


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file. `start` and `stop` are offsets from the beginning of the file, not of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A checked header.

    tensors : tensor name to entry, in the order of the data
    data_start : offset of the first tensor in the file
    file_size : bytes of the whole file
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def header_length(prefix: bytes, file_size: int, file: str) -> int:
    """Return the length of the JSON header from the first 8 bytes of the file.

    Raises
    ------
    CheckpointError : the file cannot hold a header of that length
    """
    if len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            f"{file} is not a safetensors file: {file_size} bytes, expected at least {LENGTH_BYTES}; download it again"
        )
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > LONGEST_HEADER_BYTES:
        raise CheckpointError(
            f"{file}: header claims {length} bytes, expected at most {LONGEST_HEADER_BYTES};"
            " this is not a safetensors file, or it is damaged: download it again"
        )
    if LENGTH_BYTES + length > file_size:
        raise CheckpointError(
            f"{file}: header claims {length} bytes, the file has {file_size}; it is truncated: download it again"
        )
    return length


def parse_header(data: bytes, file_size: int, file: str) -> SafetensorsHeader:
    """Parse and check a header.

    Cost: time and memory in the length of `data`, never in the sizes that the header claims.

    Parameters
    ----------
    data : bytes
        The first LENGTH_BYTES + header_length bytes of the file, or more
    file_size : int
        Bytes of the whole file
    file : str
        Name for messages

    Raises
    ------
    CheckpointError : not a header that matches the file; names the file, the tensor, what was expected and found
    """
    length = header_length(data, file_size, file)
    if len(data) < LENGTH_BYTES + length:
        raise CheckpointError(f"{file}: header is truncated: {len(data) - LENGTH_BYTES} bytes, expected {length}")
    num_tensors = data.count(b'"data_offsets"', LENGTH_BYTES, LENGTH_BYTES + length)
    if num_tensors > _MOST_TENSORS:
        raise CheckpointError(
            f"{file}: header lists {num_tensors} tensors, expected at most {_MOST_TENSORS} in one file; divide the file"
        )
    content = parse_json_object(data[LENGTH_BYTES : LENGTH_BYTES + length], f"header of {file}", LONGEST_HEADER_BYTES)
    metadata = _parse_metadata(content.pop("__metadata__", {}), file)
    data_start = LENGTH_BYTES + length
    entries = [(name, _parse_entry(name, entry, data_start, file)) for name, entry in content.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    _check_offsets(entries, data_start, file_size, file)
    return SafetensorsHeader(dict(entries), metadata, data_start, file_size)


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Build the header of a file that holds these tensors one after the other, in the given order.

    Parameters
    ----------
    tensors : mapping of tensor name to (safetensors dtype, shape)
    metadata : mapping of strings; transformers expects {"format": "pt"}

    Returns
    -------
    bytes
        Length and JSON, padded so that the data begins at a multiple of HEADER_ALIGNMENT. The same arguments give the
        same bytes.
    """
    content: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        stop = offset + tensor_bytes(dtype, shape)
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _parse_metadata(found: object, file: str) -> Mapping[str, str]:
    values = cast("dict[str, object]", found).values() if isinstance(found, dict) else None
    if values is None or not all(isinstance(value, str) for value in values):
        raise CheckpointError(f"{file}: __metadata__ must map strings to strings; write the file again")
    return cast("Mapping[str, str]", found)


def _parse_entry(name: str, found: object, data_start: int, file: str) -> TensorEntry:
    where = f"{file}: tensor {name[:200]!r}"
    if not name or any("\ud800" <= char <= "\udfff" for char in name):
        raise CheckpointError(f"{where}: the name is empty or not valid Unicode; write the file again")
    if not _is_entry(found):
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets in the header, found {_shorten(found)}")
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {_shorten(dtype)} is unknown; expected one of {', '.join(DTYPES)}")
    if not _is_list_of_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(
            f"{where}: shape {_shorten(shape)}, expected a list of at most {_MOST_DIMENSIONS} non-negative integers"
        )
    if not _is_list_of_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets {_shorten(offsets)}, expected two non-negative integers")
    start, stop = offsets
    bits = DTYPES[dtype].bits * math.prod(shape)
    if (stop - start) * 8 != bits:
        raise CheckpointError(
            f"{where}: {stop - start} bytes, expected {bits / 8 if bits < 2**63 else '2^63 or more'}"
            f" for {dtype} {_shorten(shape)}; the file is damaged: download it again"
        )
    return TensorEntry(dtype, tuple(shape), data_start + start, data_start + stop)


def _check_offsets(entries: list[tuple[str, TensorEntry]], data_start: int, file_size: int, file: str) -> None:
    position, previous = data_start, "the header"
    for name, entry in entries:
        if entry.start != position:
            problem = "overlaps" if entry.start < position else "leaves a gap after"
            raise CheckpointError(
                f"{file}: tensor {name[:200]!r} at byte {entry.start} {problem} {previous[:200]!r}, which ends at"
                f" {position}; the file is damaged: download it again"
            )
        position, previous = entry.stop, name
    if position != file_size:
        problem = (
            "it is truncated: download it again" if position > file_size else "the bytes at its end belong to no tensor"
        )
        raise CheckpointError(f"{file}: header describes {position} bytes, the file has {file_size}; {problem}")


def _is_entry(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict) and cast("dict[str, object]", value).keys() == {"dtype", "shape", "data_offsets"}


def _is_list_of_sizes(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    return all(type(item) is int and 0 <= item < 2**63 for item in cast("list[object]", value))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
