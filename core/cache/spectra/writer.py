"""Writing a spectrum as an Arrow file, batch by batch, while its tensors stay where they are."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import torch

from ...numerics.spectrum import Spectrum
from ...storage.store import Store
from .format import (
    ALIGNMENT,
    LEFT,
    RIGHT,
    ROWS_PER_BATCH,
    TORCH_DTYPES,
    VALUE,
    Column,
    Description,
    Layout,
    build_schema,
    checksum,
    dtype_name,
    padded,
)

Mode = Literal["full", "values"]


def stored_form(spectrum: Spectrum, vector_dtype: torch.dtype | None = None) -> Spectrum:
    """The spectrum that `read_spectrum` would give back: on the CPU, vectors in `vector_dtype`.

    A run that has just decomposed goes on with this one, so that it writes the same bytes as a run that finds it.
    """
    dtype = vector_dtype or spectrum.right.dtype
    return dataclasses.replace(
        spectrum,
        values=spectrum.values.cpu(),
        right=spectrum.right.to("cpu", dtype),
        left={name: block.to("cpu", dtype) for name, block in sorted(spectrum.left.items())},
        statistics={name: statistic.cpu() for name, statistic in sorted(spectrum.statistics.items())},
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
    """Write one spectrum; the number of bytes.

    Cost: one pass over the numbers for the checksums and one for writing; memory of one batch (256 directions).

    Parameters
    ----------
    provenance : mapping, JSON-able
        Where it comes from: tensor, fingerprints and weights of base and experts, algorithm version, dtype
    mode : "full" | "values"
        "values" leaves the vectors out: enough for rank rules, plots and reports
    vector_dtype : torch.float32 or torch.float64, optional
        Of the stored vectors; values and statistics keep theirs
    """
    tensors = _columns_of(spectrum, with_vectors=mode == "full")
    dtype = vector_dtype or spectrum.right.dtype
    small = [_column(name, tensor, tensor.dtype) for name, tensor in tensors.items() if not _is_vector(name)]
    vectors = [_column(name, tensor, dtype) for name, tensor in tensors.items() if _is_vector(name)]
    rows_of = partial(_rows, tensors)
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
    padding, message_bytes = _batch_padding(columns)
    layout = Layout(spectrum.num_directions, tuple(small), tuple(vectors), message_bytes)
    checksums = [
        tuple(checksum([rows_of(column, batch) for column in group]) for batch in range(layout.num_batches))
        for group in (small, vectors)
    ]
    schema = build_schema(Description(facts, layout, checksums[0], checksums[1]))
    with store.open_write(key) as writer:
        sink = Sink(writer.write)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema) as file:
            for batch in range(layout.num_batches):
                arrays = [_arrow(column, rows_of(column, batch)) for column in columns]
                file.write_batch(pa.record_batch(arrays, schema=schema), custom_metadata=padding)
    return writer.num_bytes


def _columns_of(spectrum: Spectrum, *, with_vectors: bool) -> dict[str, torch.Tensor]:
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


def _rows(tensors: Mapping[str, torch.Tensor], column: Column, batch: int) -> torch.Tensor:
    """The rows of a batch as flat bytes."""
    rows = tensors[column.name].detach()[batch * ROWS_PER_BATCH : (batch + 1) * ROWS_PER_BATCH]
    return rows.to("cpu", TORCH_DTYPES[column.dtype]).contiguous().reshape(-1).view(torch.uint8)


def _arrow(column: Column, data: torch.Tensor) -> pa.Array:
    item = column.field.type if column.width is None else column.field.type.value_type
    num_items = data.numel() // (item.bit_width // 8)
    flat = pa.Array.from_buffers(item, num_items, [None, pa.py_buffer(data.numpy().data)])
    if column.width is None:
        return flat
    num_rows = num_items // column.width if column.width else 0
    return pa.Array.from_buffers(column.field.type, num_rows, [None], children=[flat])


def _batch_padding(columns: Sequence[Column]) -> tuple[dict[str, str], int]:
    """Metadata that makes the head of every batch a multiple of 64 bytes long, and that length.

    Arrow aligns to 8. The numbers of a full batch take a multiple of 64, so with such a head all of them are aligned.
    """
    # One row and not none: a length of zero is left out of the message, which makes it shorter.
    arrays = [_arrow(column, torch.zeros(column.row_bytes, dtype=torch.uint8)) for column in columns]
    row = pa.record_batch(arrays, schema=pa.schema([column.field for column in columns]))
    body_bytes = sum(padded(column.row_bytes) for column in columns)
    for length in range(2 * ALIGNMENT):
        padding, sink = {"padding": " " * length}, io.BytesIO()
        with pa.ipc.new_stream(sink, row.schema) as stream:
            stream.write_batch(row, custom_metadata=padding)  # and the schema before it
            before = sink.tell()
            stream.write_batch(row, custom_metadata=padding)
            message_bytes = sink.tell() - before - body_bytes
        if message_bytes % ALIGNMENT == 0:
            return padding, message_bytes
    raise AssertionError("a batch cannot be padded")


class Sink(io.RawIOBase):
    """What pyarrow writes to."""

    def __init__(self, write: Callable[[bytes | memoryview], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._write(view)
        return len(view)
