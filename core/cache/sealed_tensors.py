"""Named tensors as one safetensors object that says what it is and can be checked: for sums that are kept.

The header's metadata hold a record: the object's own key, facts, and dtype, shape and sha256 of every tensor; and the
record's own sha256. One object, so that tensors and checksums cannot come from two writers. Any safetensors reader
opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError, CorruptObjectError
from ..formats.bounded_json import parse_json_object
from ..formats.digest import hash_bytes, hash_text
from ..formats.safetensors_header import LONGEST_HEADER_BYTES, SafetensorsHeader, build_header
from ..storage.mapped_file import view_as
from ..storage.object_bytes import read_object_bytes
from ..storage.object_header import read_header
from ..storage.store import Store
from ..storage.torch_dtypes import safetensors_dtype, torch_dtype

_RECORD = "eigenmerge"
_CHECKSUM = "eigenmerge_sha256"


@dataclass(frozen=True, slots=True)
class Seal:
    """What an object says of itself, checked but for the numbers.

    facts : what was given to `write_sealed`
    checksums : tensor name to sha256 of its bytes
    num_bytes : of the whole object
    """

    key: str
    facts: Mapping[str, Any]
    header: SafetensorsHeader
    checksums: Mapping[str, str]
    num_bytes: int


def write_sealed(store: Store, key: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> int:
    """Write one object; the number of bytes.

    Cost: one pass over the numbers for the checksums and one for writing; on the CPU nothing is copied.

    Parameters
    ----------
    facts : JSON-able
    """
    # Wider numbers first: every tensor then begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    table = {name: (safetensors_dtype(tensors[name].dtype), tuple(tensors[name].shape)) for name in names}
    checksums = {name: hash_bytes(_flat(tensors[name]).numpy().data) for name in names}
    rows = {name: [dtype, list(shape), checksums[name]] for name, (dtype, shape) in table.items()}
    record = json.dumps({"key": key, "facts": dict(facts), "tensors": rows}, sort_keys=True, separators=(",", ":"))
    metadata = {_RECORD: record, _CHECKSUM: hash_text(record)}
    with store.open_write(key) as writer:
        writer.write(build_header(table, metadata))
        for name in names:
            if tensors[name].numel():
                writer.write(_flat(tensors[name]).numpy().data)
    return writer.num_bytes


def read_seal(store: Store, key: str) -> Seal:
    """The record alone: one request on S3.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed in its record, foreign, or another object under this name
    """
    name = store.display(key)
    try:
        header = read_header(store, key)
    except CheckpointError as error:
        raise CorruptObjectError(f"{error}") from None
    record = header.metadata.get(_RECORD, "")
    if hash_text(record) != header.metadata.get(_CHECKSUM):
        raise CorruptObjectError(f"{name}: its record fails its checksum")
    try:
        content: dict[str, Any] = parse_json_object(record.encode(), name, LONGEST_HEADER_BYTES)
        if content["key"] != key:
            raise CorruptObjectError(f"{name} is another object: it says it is {str(content['key'])[:200]!r}")
        rows = {tensor: (dtype, shape, checksum) for tensor, (dtype, shape, checksum) in content["tensors"].items()}
        facts = dict(content["facts"])
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptObjectError(f"{name}: its record is not understood ({str(error)[:100]})") from None
    found = {tensor: (entry.dtype, list(entry.shape)) for tensor, entry in header.tensors.items()}
    if found != {tensor: row[:2] for tensor, row in rows.items()}:
        raise CorruptObjectError(f"{name}: its header does not fit its record")
    return Seal(key, facts, header, {tensor: str(row[2]) for tensor, row in rows.items()}, header.file_size)


def read_sealed(store: Store, seal: Seal) -> dict[str, torch.Tensor]:
    """The tensors, checked; on the CPU, mapped where the store is local. Writing to them changes nothing in the store.

    Raises
    ------
    ObjectNotFoundError, CorruptObjectError : as `read_seal`; a tensor fails its checksum
    """
    found = {}
    for name, entry in seal.header.tensors.items():
        data = read_object_bytes(store, seal.key, entry.start, entry.stop)
        if hash_bytes(data.numpy().data) != seal.checksums[name]:
            raise CorruptObjectError(f"{store.display(seal.key)}: tensor {name!r} fails its checksum")
        try:
            found[name] = view_as(data, torch_dtype(entry.dtype)).reshape(entry.shape)
        except CheckpointError as error:
            raise CorruptObjectError(f"{store.display(seal.key)}: {error}") from None
    return found


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
