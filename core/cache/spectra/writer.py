"""Write a spectrum as an Arrow file, one batch of directions at a time."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import torch

from ...numerics.spectrum import Spectrum
from ...storage.store import Store
from .format import (
    ARROW_TYPES,
    BYTE_ALIGNMENT,
    LEFT,
    RIGHT,
    ROWS_PER_BATCH,
    TORCH_DTYPES,
    VALUE,
    Column,
    Description,
    FileLayout,
    build_schema,
    checksum,
    dtype_name,
    padded_size,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

Mode = Literal["full", "values"]


def as_stored(spectrum: Spectrum, vector_dtype: torch.dtype | None = None) -> Spectrum:
    """Return what `read_spectrum` returns after `write_spectrum`: on the CPU, vectors in `vector_dtype`."""
    rounded = rounded_as_stored(spectrum, vector_dtype)
    return dataclasses.replace(
        rounded,
        values=rounded.values.cpu(),
        right=rounded.right.cpu(),
        left={name: block.cpu() for name, block in rounded.left.items()},
        statistics={name: statistic.cpu() for name, statistic in rounded.statistics.items()},
    )


def rounded_as_stored(spectrum: Spectrum, vector_dtype: torch.dtype | None = None) -> Spectrum:
    """Return the numbers of `as_stored` on the device of the spectrum.

    A run that has just decomposed continues with this one, so that it writes the same bytes as a run that reads the
    spectrum from the store.
    """
    dtype = vector_dtype or spectrum.right.dtype
    return dataclasses.replace(
        spectrum,
        right=spectrum.right.to(dtype),
        left={name: block.to(dtype) for name, block in sorted(spectrum.left.items())},
        statistics=dict(sorted(spectrum.statistics.items())),
    )


def write_spectrum(
    store: Store,
    key: str,
    spectrum: Spectrum,
    *,
    provenance: Mapping[str, object],
    mode: Mode = "full",
    vector_dtype: torch.dtype | None = None,
) -> int:
    """Write one spectrum and return the size of the object in bytes.

    Cost: one pass over the numbers for the checksums and one for writing; memory of one batch (256 directions).

    Parameters
    ----------
    provenance : mapping that JSON can represent
        Origin of the spectrum: tensor, fingerprints and weights of base and experts, algorithm version, dtype
    mode : "full" | "values"
        "values" leaves the vectors out: sufficient for rank rules, plots and reports
    vector_dtype : torch.float32 or torch.float64, optional
        Of the stored vectors; values and statistics keep theirs
    """
    tensors = _tensors_by_column(spectrum, with_vectors=mode == "full")
    dtype = vector_dtype or spectrum.right.dtype
    small = [_column(name, tensor, tensor.dtype) for name, tensor in tensors.items() if not _is_vector(name)]
    vectors = [_column(name, tensor, dtype) for name, tensor in tensors.items() if _is_vector(name)]
    bytes_of = partial(_batch_bytes, tensors)
    facts = {
        "kind": spectrum.kind,
        "shape": list(spectrum.shape),
        "num_experts": spectrum.num_experts,
        "blocks": sorted(spectrum.left),
        "vectors_dtype": dtype_name(dtype),
        "info": dict(spectrum.info),
        "provenance": dict(provenance),
        "key": key,
    }
    columns = [*small, *vectors]
    padding, message_bytes = _message_padding(columns)
    layout = FileLayout(spectrum.num_directions, tuple(small), tuple(vectors), message_bytes)
    checksums = [
        tuple(checksum([bytes_of(column, batch) for column in group]) for batch in range(layout.num_batches))
        for group in (small, vectors)
    ]
    schema = build_schema(Description(facts, layout, checksums[0], checksums[1]))
    with (
        store.open_write(key) as writer,
        pa.ipc.new_file(pa.PythonFile(WriteOnlyFile(writer.write), mode="w"), schema) as file,
    ):
        for batch in range(layout.num_batches):
            arrays = [_arrow_array(column, bytes_of(column, batch)) for column in columns]
            file.write_batch(pa.record_batch(arrays, schema=schema), custom_metadata=padding)
    return writer.num_bytes


def _tensors_by_column(spectrum: Spectrum, *, with_vectors: bool) -> dict[str, torch.Tensor]:
    tensors = {VALUE: spectrum.values, **dict(sorted(spectrum.statistics.items()))}
    assert len(tensors) == len(spectrum.statistics) + 1 and not any(map(_is_vector, tensors)), list(tensors)
    if with_vectors:
        tensors[RIGHT] = spectrum.right
        tensors.update({LEFT + name: block for name, block in sorted(spectrum.left.items())})
    return tensors


def _is_vector(name: str) -> bool:
    return name == RIGHT or name.startswith(LEFT)


def _column(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> Column:
    assert tensor.ndim <= 2, (name, tensor.shape)
    return Column(name, dtype_name(dtype), tensor.shape[1] if tensor.ndim == 2 else None)


def _batch_bytes(tensors: Mapping[str, torch.Tensor], column: Column, batch: int) -> torch.Tensor:
    """Return the rows of a column in a batch as flat bytes, uint8, on the CPU."""
    rows = tensors[column.name].detach()[batch * ROWS_PER_BATCH : (batch + 1) * ROWS_PER_BATCH]
    return rows.to("cpu", TORCH_DTYPES[column.dtype]).contiguous().reshape(-1).view(torch.uint8)


def _arrow_array(column: Column, data: torch.Tensor) -> pa.Array:
    """Return the bytes of a column as an Arrow array that shares their memory."""
    num_items = data.numel() // column.item_bytes
    flat = pa.Array.from_buffers(ARROW_TYPES[column.dtype], num_items, [None, pa.py_buffer(data.numpy().data)])
    if column.width is None:
        return flat
    num_rows = num_items // column.width if column.width else 0
    return pa.Array.from_buffers(column.field.type, num_rows, [None], children=[flat])


def _message_padding(columns: Sequence[Column]) -> tuple[dict[str, str], int]:
    """Return metadata that makes the message of every batch a multiple of 64 bytes long, and that length.

    Arrow aligns to 8 bytes. The data of a full batch is a multiple of 64 bytes long, so with such messages the data of
    every batch is aligned to 64 bytes.
    """
    # Measured on a batch of one row: in an empty batch the lengths of zero are omitted, and its message is shorter.
    arrays = [_arrow_array(column, torch.zeros(column.row_bytes, dtype=torch.uint8)) for column in columns]
    row = pa.record_batch(arrays, schema=pa.schema([column.field for column in columns]))
    data_bytes = sum(padded_size(column.row_bytes) for column in columns)
    for length in range(2 * BYTE_ALIGNMENT):
        padding, sink = {"padding": " " * length}, io.BytesIO()
        with pa.ipc.new_stream(sink, row.schema) as stream:
            stream.write_batch(row, custom_metadata=padding)  # preceded by the schema
            before = sink.tell()
            stream.write_batch(row, custom_metadata=padding)
            message_bytes = sink.tell() - before - data_bytes
        if message_bytes % BYTE_ALIGNMENT == 0:
            return padding, message_bytes
    raise AssertionError(f"no padding aligns a batch to {BYTE_ALIGNMENT} bytes")


class WriteOnlyFile(io.RawIOBase):
    """File object for pyarrow that passes what is written to a function."""

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        view = memoryview(data).cast("B")
        self._write(view)
        return len(view)
