"""safetensors headers: parsed and checked from bytes alone, and written.

Layout of a file: 8 bytes little-endian length of the header, the header (JSON, padded with spaces), the data. The
format's own rules are enforced here, because a header from outside decides what will be read: no duplicate names,
offsets in order, no overlap, no hole, nothing beyond the end. A header may claim anything; nothing is allocated for it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CheckpointError
from .bounded_json import parse_json_object
from .dtypes import DTYPES, tensor_bytes

LENGTH_BYTES = 8
# A page: where tensors are whole pages too, as in real models, files are joined and mapped without shifting any byte.
HEADER_ALIGNMENT = 4096
LONGEST_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_MOST_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; start and stop count from the beginning of the file, not of the data."""

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
    """The length of the JSON that follows the first 8 bytes of `prefix`.

    Raises
    ------
    CheckpointError : the file cannot hold a header of that length
    """
    if len(prefix) < LENGTH_BYTES:
        raise CheckpointError(
            f"{file} is not a safetensors file: {file_size} bytes, expected at least {LENGTH_BYTES}; download it again"
        )
    (length,) = struct.unpack_from("<Q", prefix)
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

    Cost: time and memory in the length of the header that is really there, never in what it claims.

    Parameters
    ----------
    data : bytes
        The first 8 + header_length bytes of the file, or more
    file_size : int
        Of the whole file, in bytes
    file : str
        For messages

    Raises
    ------
    CheckpointError : anything else than a header that fits the file; names file, tensor, expected, found
    """
    length = header_length(data, file_size, file)
    if len(data) < LENGTH_BYTES + length:
        raise CheckpointError(f"{file}: header is truncated: {len(data) - LENGTH_BYTES} bytes of {length}")
    content = parse_json_object(data[LENGTH_BYTES : LENGTH_BYTES + length], f"header of {file}", LONGEST_HEADER_BYTES)
    metadata = _metadata(content.pop("__metadata__", {}), file)
    data_start = LENGTH_BYTES + length
    entries = [(name, _entry(name, entry, data_start, file)) for name, entry in content.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    _check_layout(entries, data_start, file_size, file)
    return SafetensorsHeader(dict(entries), metadata, data_start, file_size)


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The first bytes of a file that holds these tensors one after the other, in the order given.

    Parameters
    ----------
    tensors : name to (safetensors dtype, shape)
    metadata : strings; {"format": "pt"} is what transformers expects

    Returns
    -------
    bytes
        Length and JSON, padded so that the data begins at a multiple of a page. The same arguments give the same bytes.
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


def _metadata(found: object, file: str) -> Mapping[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{file}: __metadata__ must map strings to strings; write the file again")
    return found


def _entry(name: str, found: object, data_start: int, file: str) -> TensorEntry:
    where = f"{file}: tensor {name[:200]!r}"
    if not name or any("\ud800" <= char <= "\udfff" for char in name):
        raise CheckpointError(f"{where}: the name is empty or not valid Unicode; write the file again")
    if not isinstance(found, dict) or found.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets in the header, found {_short(found)}")
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {_short(dtype)} is unknown; expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where}: shape {_short(shape)} is not a list of non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where}: data_offsets {_short(offsets)} are not two non-negative integers")
    start, stop = offsets
    bits = DTYPES[dtype].bits * math.prod(shape)
    if (stop - start) * 8 != bits:
        raise CheckpointError(
            f"{where}: {stop - start} bytes, expected {bits / 8 if bits < 2**63 else '2^63 or more'}"
            f" for {dtype} {_short(shape)}; the file is damaged: download it again"
        )
    return TensorEntry(dtype, tuple(shape), data_start + start, data_start + stop)


def _check_layout(entries: list[tuple[str, TensorEntry]], data_start: int, file_size: int, file: str) -> None:
    position, before = data_start, "the header"
    for name, entry in entries:
        if entry.start != position:
            problem = "overlaps" if entry.start < position else "leaves a hole after"
            raise CheckpointError(
                f"{file}: tensor {name[:200]!r} at byte {entry.start} {problem} {before[:200]!r}, which ends at"
                f" {position}; the file is damaged: download it again"
            )
        position, before = entry.stop, name
    if position != file_size:
        problem = (
            "it is truncated: download it again" if position > file_size else "bytes at its end belong to no tensor"
        )
        raise CheckpointError(f"{file}: header describes {position} bytes, the file has {file_size}; {problem}")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
