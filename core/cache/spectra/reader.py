"""Spectra in a store: read whole, by their first rows, or without their vectors; written by `spectrum_writer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from ...errors import CorruptObjectError, ShapeError
from ...numerics.spectrum import Spectrum
from ...storage.mapped_file import view_as
from ...storage.object_bytes import read_object_bytes
from ...storage.store import Store
from .format import (
    LEFT,
    RIGHT,
    ROWS_PER_BATCH,
    TORCH_DTYPES,
    VALUE,
    Column,
    Description,
    checksum,
    head_bytes,
    parse_head,
)
from .writer import stored_form, write_spectrum

__all__ = ["StoredSpectrum", "read_spectrum", "stored_form", "verify_spectrum", "write_spectrum"]

_SPECULATIVE_BYTES = 64 * 2**10  # the description of 300 batches, or 80000 directions
_PARALLEL_BATCHES = 8

Body = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class StoredSpectrum:
    """A spectrum as it lies in a store.

    spectrum : its vectors are on the "meta" device (shapes without numbers) where they are not stored or not wanted
    provenance : what was given to `write_spectrum`
    has_vectors : whether the file holds them
    """

    spectrum: Spectrum
    provenance: Mapping[str, object]
    has_vectors: bool


def read_spectrum(store: Store, key: str, *, top: int | None = None, values_only: bool = False) -> StoredSpectrum:
    """Read a spectrum, or its first directions, or its values and statistics alone; everything read is checked.

    Cost: on S3 one request for the description and then only the batches that hold the first `top` rows, or only their
    small columns, several at a time. Locally a memory map: a spectrum of one batch (256 directions) is not copied, of a
    longer one the wanted rows are copied into one tensor.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, foreign, or another spectrum under this name
    """
    description, body = _open(store, key)
    layout = description.layout
    kept = layout.num_directions if top is None else min(top, layout.num_directions)
    reader = _RowReader(description, body, store.display(key))
    numbers = reader.read(layout.small, description.small_checksums, kept)
    if layout.vectors and not values_only:
        numbers.update(reader.read(layout.vectors, description.vector_checksums, kept))
    try:
        return _rebuild(description, numbers, kept)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{store.display(key)}: its description is not understood ({error})") from None


def verify_spectrum(store: Store, key: str) -> None:
    """Read everything twice, as we do and as any Arrow tool does; `CorruptObjectError` says what is wrong."""
    read_spectrum(store, key)
    description, _ = _open(store, key)
    name, layout, data = store.display(key), description.layout, store.read(key)
    try:
        file = pa.ipc.open_file(pa.py_buffer(data))
        batches = [file.get_batch(index) for index in range(file.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        small, vectors = (
            tuple(checksum([_arrow_bytes(batch.column(c.name)) for c in columns]) for batch in batches)
            for columns in (layout.small, layout.vectors)
        )
    except (pa.ArrowException, LookupError, OSError, ValueError) as error:
        raise CorruptObjectError(f"{name}: its Arrow structure is damaged ({str(error)[:100]})") from None
    if (small, vectors) != (description.small_checksums, description.vector_checksums):
        raise CorruptObjectError(f"{name}: read as Arrow, its batches fail their checksums")


def _arrow_bytes(array: pa.Array) -> torch.Tensor:
    flat = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    return torch.tensor(flat.to_numpy()).view(torch.uint8)


def _open(store: Store, key: str) -> tuple[Description, Body]:
    """The description, and a function from a range of the file to its bytes."""
    name = store.display(key)
    head, size = store.read_head(key, _SPECULATIVE_BYTES)
    length = head_bytes(head, size, name)
    if length > len(head):
        head += store.read_range(key, len(head), length)
    description = parse_head(head, size, name)
    found = description.facts.get("key")
    if found != key:
        raise CorruptObjectError(f"{name} is another object: it says it is {str(found)[:200]!r}")

    def body(start: int, stop: int) -> torch.Tensor:
        if stop <= len(head) and not store.is_local:
            return torch.frombuffer(bytearray(head[start:stop]), dtype=torch.uint8)
        return read_object_bytes(store, key, start, stop)

    return description, body


@dataclass(frozen=True, slots=True)
class _RowReader:
    """Reads columns that stand together, batch by batch, and checks them."""

    description: Description
    body: Body
    name: str

    def read(self, columns: Sequence[Column], checksums: Sequence[str], kept: int) -> dict[str, torch.Tensor]:
        """The first `kept` rows."""
        batches = range(-(-kept // ROWS_PER_BATCH))
        if len(batches) == 1:
            return {name: rows[:kept] for name, rows in self._read_batch(0, columns, checksums[0]).items()}
        result = {c.name: torch.empty(_shape(c, kept), dtype=TORCH_DTYPES[c.dtype]) for c in columns}

        def copy(batch: int) -> None:
            start = self.description.layout.rows(batch)[0]
            for name, rows in self._read_batch(batch, columns, checksums[batch]).items():
                result[name][start : start + len(rows)] = rows[: kept - start]

        with ThreadPoolExecutor(_PARALLEL_BATCHES, thread_name_prefix="spectrum") as pool:
            list(pool.map(copy, batches))
        return result

    def _read_batch(self, batch: int, columns: Sequence[Column], expected: str) -> dict[str, torch.Tensor]:
        layout = self.description.layout
        start, stop = layout.span(batch, columns)
        data = self.body(start, stop)
        pieces = {}
        for column in columns:
            place = layout.span(batch, [column])[0] - start
            pieces[column.name] = data[place : place + layout.column_bytes(batch, column)]
        if checksum(list(pieces.values())) != expected:
            first, last = layout.rows(batch)
            raise CorruptObjectError(f"{self.name}: rows {first} to {last} fail their checksum")
        return {c.name: view_as(pieces[c.name], TORCH_DTYPES[c.dtype]).reshape(_shape(c, -1)) for c in columns}


def _shape(column: Column, num_rows: int) -> tuple[int, ...]:
    return (num_rows,) if column.width is None else (num_rows, column.width)


def _rebuild(description: Description, numbers: Mapping[str, torch.Tensor], kept: int) -> StoredSpectrum:
    facts: Mapping[str, Any] = description.facts
    rows, columns = (int(size) for size in facts["shape"])
    dtype = TORCH_DTYPES[facts["vectors_dtype"]]

    def vectors(name: str, width: int) -> torch.Tensor:
        found = numbers.get(name)
        return torch.empty((kept, width), dtype=dtype, device="meta") if found is None else found

    try:
        spectrum = Spectrum(
            kind=str(facts["kind"]),
            shape=(rows, columns),
            num_experts=int(facts["num_experts"]),
            values=numbers[VALUE],
            right=vectors(RIGHT, columns),
            left={name: vectors(LEFT + name, rows) for name in facts["blocks"]},
            statistics={
                column.name: numbers[column.name] for column in description.layout.small if column.name != VALUE
            },
            info=dict(facts["info"]),
        )
    except ShapeError as error:
        raise ValueError(str(error)) from None
    return StoredSpectrum(spectrum, dict(facts["provenance"]), bool(description.layout.vectors))
