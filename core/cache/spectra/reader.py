"""Read spectra from a store: whole, only the first directions, or without vectors; check all that is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

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

_FIRST_READ_BYTES = 64 * 2**10  # the description of 300 batches, which is 80000 directions
_PARALLEL_BATCHES = 8

# From a byte range [start, stop) of the object to its bytes, flat, uint8.
ReadRange: TypeAlias = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class StoredSpectrum:
    """A spectrum of a store.

    spectrum : on the CPU; vectors that are not stored, or were not requested, are on the "meta" device
    provenance : as given to `write_spectrum`
    has_vectors : whether the object contains the vectors
    """

    spectrum: Spectrum
    provenance: Mapping[str, object]
    has_vectors: bool


def read_spectrum(
    store: Store, key: str, *, top: int | None = None, values_only: bool = False, most_bytes: int | None = None
) -> StoredSpectrum:
    """Read a spectrum, its first `top` directions, or only its values and statistics.

    Parameters
    ----------
    most_bytes : `most_spectrum_bytes` of the matrix, where it is known; a larger object is damaged

    Cost: on S3 one request for the description, then requests in parallel for the batches that contain the first `top`
    rows (with `values_only` for their small columns). On a local disk a memory map: a spectrum of one batch (256
    directions) is not copied; of a longer one the requested rows are copied.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, of another format, or the object of another key
    """
    description, read_range = _open(store, key, most_bytes)
    layout = description.layout
    num_rows = layout.num_directions if top is None else min(top, layout.num_directions)
    reader = _RowReader(description, read_range, store.display(key))
    numbers = reader.read(layout.small, description.small_checksums, num_rows)
    if layout.vectors and not values_only:
        numbers.update(reader.read(layout.vectors, description.vector_checksums, num_rows))
    try:
        return _build_spectrum(description, numbers, num_rows)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{store.display(key)}: its description cannot be read ({error})") from None


def verify_description(store: Store, key: str) -> None:
    """Check the beginning of the object, which says what the rest is: it is a spectrum of this key.

    Raises
    ------
    ObjectNotFoundError, CorruptObjectError : as `read_spectrum`
    """
    _open(store, key)


def verify_spectrum(store: Store, key: str) -> None:
    """Read the whole object twice and check it: by the description, and by the footer as other Arrow tools do.

    Raises
    ------
    ObjectNotFoundError, CorruptObjectError : as `read_spectrum`
    """
    read_spectrum(store, key)
    description, _ = _open(store, key)
    name, layout, data = store.display(key), description.layout, store.read(key, description.most_bytes)
    try:
        file = pa.ipc.open_file(pa.py_buffer(data))
        batches = [file.get_batch(index) for index in range(file.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        small, vectors = (
            tuple(checksum([_array_bytes(batch.column(column.name)) for column in columns]) for batch in batches)
            for columns in (layout.small, layout.vectors)
        )
    except (pa.ArrowException, LookupError, OSError, ValueError) as error:
        raise CorruptObjectError(f"{name}: its Arrow structure is damaged ({str(error)[:100]})") from None
    if (small, vectors) != (description.small_checksums, description.vector_checksums):
        raise CorruptObjectError(f"{name}: its batches fail their checksums when they are read as Arrow")


def _array_bytes(array: pa.Array) -> torch.Tensor:
    flat = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    return torch.tensor(flat.to_numpy()).view(torch.uint8)


def _open(store: Store, key: str, most_bytes: int | None = None) -> tuple[Description, ReadRange]:
    """Read the description; return it and a function that reads a byte range of the object."""
    name = store.display(key)
    head, size = store.read_head(key, _FIRST_READ_BYTES)
    if most_bytes is not None and size > most_bytes:
        raise CorruptObjectError(f"{name} has {size} bytes, expected at most {most_bytes} for a matrix of this shape")
    length = head_bytes(head, size, name)
    if length > len(head):
        head += store.read_range(key, len(head), length)
    description = parse_head(head, size, name)
    found = description.facts.get("key")
    if found != key:
        raise CorruptObjectError(f"{name} is another object: its description has the key {str(found)[:200]!r}")

    def read_range(start: int, stop: int) -> torch.Tensor:
        if stop <= len(head) and not store.is_local:
            return torch.frombuffer(bytearray(head[start:stop]), dtype=torch.uint8)
        return read_object_bytes(store, key, start, stop)

    return description, read_range


@dataclass(frozen=True, slots=True)
class _RowReader:
    """Reads adjacent columns one batch at a time and checks them. `name` of the object, for messages."""

    description: Description
    read_range: ReadRange
    name: str

    def read(self, columns: Sequence[Column], checksums: Sequence[str], num_rows: int) -> dict[str, torch.Tensor]:
        """Return the first `num_rows` rows of each column, by column name."""
        batches = range(-(-num_rows // ROWS_PER_BATCH))
        if len(batches) == 1:
            return {name: rows[:num_rows] for name, rows in self._read_batch(0, columns, checksums[0]).items()}
        result = {c.name: torch.empty(_shape(c, num_rows), dtype=TORCH_DTYPES[c.dtype]) for c in columns}

        def copy_batch(batch: int) -> None:
            start = self.description.layout.rows(batch)[0]
            for name, rows in self._read_batch(batch, columns, checksums[batch]).items():
                result[name][start : start + len(rows)] = rows[: num_rows - start]

        with ThreadPoolExecutor(_PARALLEL_BATCHES, thread_name_prefix="spectrum") as pool:
            list(pool.map(copy_batch, batches))
        return result

    def _read_batch(self, batch: int, columns: Sequence[Column], expected: str) -> dict[str, torch.Tensor]:
        layout = self.description.layout
        start, stop = layout.span(batch, columns)
        data = self.read_range(start, stop)
        pieces: dict[str, torch.Tensor] = {}
        for column in columns:
            offset = layout.span(batch, [column])[0] - start
            pieces[column.name] = data[offset : offset + layout.column_bytes(batch, column)]
        if checksum(list(pieces.values())) != expected:
            first, last = layout.rows(batch)
            raise CorruptObjectError(f"{self.name}: rows {first} to {last} fail their checksum")
        return {c.name: view_as(pieces[c.name], TORCH_DTYPES[c.dtype]).reshape(_shape(c, -1)) for c in columns}


def _shape(column: Column, num_rows: int) -> tuple[int, ...]:
    return (num_rows,) if column.width is None else (num_rows, column.width)


def _build_spectrum(description: Description, numbers: Mapping[str, torch.Tensor], num_rows: int) -> StoredSpectrum:
    facts: Mapping[str, Any] = description.facts
    rows, columns = (int(size) for size in facts["shape"])
    dtype = TORCH_DTYPES[facts["vectors_dtype"]]

    def vectors(name: str, width: int) -> torch.Tensor:
        found = numbers.get(name)
        return torch.empty((num_rows, width), dtype=dtype, device="meta") if found is None else found

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
