"""Named tensors as one safetensors object with checksums: the format of kept sums.

The metadata of the header contain a record (key of the object, facts, and dtype, shape and sha256 of every tensor) and
the sha256 of the record. Tensors and checksums are one object, so they always come from the same writer. Any
safetensors reader can open it.
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
    """Header and record of an object, checked; the data of the tensors is not read yet.

    facts : as given to `write_sealed`
    checksums : sha256 of each tensor's bytes, by tensor name
    num_bytes : of the whole object
    """

    key: str
    facts: Mapping[str, Any]
    header: SafetensorsHeader
    checksums: Mapping[str, str]
    num_bytes: int


def write_sealed(store: Store, key: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, object]) -> int:
    """Write one object and return its size in bytes.

    Cost: one pass over the data for the checksums and one for writing. Tensors on the CPU are not copied, those on a
    GPU once.

    Parameters
    ----------
    facts : mapping that JSON can represent
    """
    # Sorted by descending element size, every tensor begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    table = {name: (safetensors_dtype(tensors[name].dtype), tuple(tensors[name].shape)) for name in names}
    data = {name: _flat(tensors[name]).numpy().data for name in names}
    checksums = {name: hash_bytes(data[name]) for name in names}
    rows = {name: [dtype, list(shape), checksums[name]] for name, (dtype, shape) in table.items()}
    record = json.dumps({"key": key, "facts": dict(facts), "tensors": rows}, sort_keys=True, separators=(",", ":"))
    metadata = {_RECORD: record, _CHECKSUM: hash_text(record)}
    with store.open_write(key) as writer:
        writer.write(build_header(table, metadata))
        for name in names:
            if tensors[name].numel():
                writer.write(data[name])
    return writer.num_bytes


def read_seal(store: Store, key: str) -> Seal:
    """Read and check the header and its record, without the tensors: one request on S3.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, of another format, or the object of another key
    """
    name = store.display(key)
    try:
        header = read_header(store, key)
    except CheckpointError as error:
        raise CorruptObjectError(str(error)) from None
    record = header.metadata.get(_RECORD, "")
    if hash_text(record) != header.metadata.get(_CHECKSUM):
        raise CorruptObjectError(f"{name}: its record fails its checksum")
    try:
        content: dict[str, Any] = parse_json_object(record.encode(), name, LONGEST_HEADER_BYTES)
        if content["key"] != key:
            raise CorruptObjectError(f"{name} is another object: its record has the key {str(content['key'])[:200]!r}")
        rows = {tensor: (dtype, shape, checksum) for tensor, (dtype, shape, checksum) in content["tensors"].items()}
        facts = dict(content["facts"])
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptObjectError(f"{name}: its record cannot be read ({str(error)[:100]})") from None
    found = {tensor: (entry.dtype, list(entry.shape)) for tensor, entry in header.tensors.items()}
    if found != {tensor: row[:2] for tensor, row in rows.items()}:
        raise CorruptObjectError(f"{name}: its header and its record list different tensors")
    return Seal(key, facts, header, {tensor: str(row[2]) for tensor, row in rows.items()}, header.file_size)


def read_sealed(store: Store, seal: Seal) -> dict[str, torch.Tensor]:
    """Return the tensors, checked, on the CPU; memory-mapped where the store is local.

    The caller may write to them: the stored object does not change.

    Raises
    ------
    ObjectNotFoundError : the object was deleted
    CorruptObjectError : a tensor fails its checksum, or its dtype is not supported
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in seal.header.tensors.items():
        data = read_object_bytes(store, seal.key, entry.start, entry.stop)
        if hash_bytes(data.numpy().data) != seal.checksums[name]:
            raise CorruptObjectError(f"{store.display(seal.key)}: tensor {name!r} fails its checksum")
        try:
            tensors[name] = view_as(data, torch_dtype(entry.dtype)).reshape(entry.shape)
        except CheckpointError as error:
            raise CorruptObjectError(f"{store.display(seal.key)}: {error}") from None
    return tensors


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, (num_bytes,), uint8, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
