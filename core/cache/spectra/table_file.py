"""Table of spectra: values and statistics of every matrix of a run or a shard, without the vectors, one row each.

Plots, rank rules across layers and reports read this one file instead of thousands. Each row is a record batch, so that
the table is written while its rows are produced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ...errors import CorruptObjectError
from ...formats.bounded_json import parse_json_object
from ...formats.digest import hash_chunks
from ...numerics.spectrum import Spectrum
from ...storage.store import Store
from .format import TORCH_DTYPES, dtype_name
from .writer import WriteOnlyFile

Numbers: TypeAlias = npt.NDArray[np.float64]

_FORMAT = b"eigenmerge run table 1"
_LONGEST_JSON_BYTES = 16 * 2**20
_SMALL_TABLE_BYTES = 64 * 2**20  # read in one request; the tables of shards and of most runs
_LONGEST_ROW_BYTES = 2**30  # a million directions with a hundred numbers each; the footer has 24 bytes for each row
# What Arrow, JSON and torch raise for a damaged table. CorruptObjectError is an OSError too.
_UNREADABLE = (pa.ArrowException, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def _list_of(item: pa.DataType) -> pa.ListType:
    return pa.list_(pa.field("item", item, nullable=False))


_NUMBERS = _list_of(pa.float64())
_COLUMNS: Mapping[str, pa.DataType] = {
    "name": pa.string(),
    "spectrum_key": pa.string(),
    "kind": pa.string(),
    "rows": pa.int64(),
    "columns": pa.int64(),
    "num_experts": pa.int64(),
    "dtype": pa.string(),  # of the values, which are stored as float64
    "blocks": _list_of(pa.string()),
    "statistics": _list_of(pa.string()),
    "statistic_dtypes": _list_of(pa.string()),
    "statistic_widths": pa.list_(pa.int64()),  # numbers for each direction; null: one plain number
    "info": pa.string(),  # JSON
    "values": _NUMBERS,
    "statistic_data": _list_of(_NUMBERS),
    "checksum": pa.string(),
}
_SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()], metadata={b"eigenmerge": _FORMAT}
)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One matrix of a run.

    name : of the tensor, or "tensor[q]" for one matrix of several, "tensor[outputs]" for a decomposition over outputs
    spectrum : values and statistics; in a row that was read, the vectors are on the "meta" device
    """

    name: str
    spectrum_key: str
    spectrum: Spectrum


def table_name(tensor: str, part: str | None) -> str:
    """Return the name of a row: that of the tensor, with the part of it that was decomposed."""
    return f"{tensor}[{part}]" if part else tensor


def write_run_table(store: Store, key: str, rows: Iterable[TableRow]) -> int:
    """Write the table and return its size in bytes. Holds one row in memory at a time."""
    with (
        store.open_write(key) as writer,
        pa.ipc.new_file(pa.PythonFile(WriteOnlyFile(writer.write), mode="w"), _SCHEMA) as file,
    ):
        for row in rows:
            file.write_batch(_to_arrow(row))
    return writer.num_bytes


def read_run_table(store: Store, key: str) -> Iterator[TableRow]:
    """Yield all rows, checked. Holds one row in memory at a time, of a small table all bytes.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, or not a table of spectra
    """
    name = store.display(key)
    data, size = store.read_head(key, _SMALL_TABLE_BYTES)
    try:
        ranges: Any = _TableRanges(store, key, size)
        source: Any = pa.py_buffer(data) if size == len(data) else pa.PythonFile(ranges, mode="r")
        file = pa.ipc.open_file(source)
        if file.schema != _SCHEMA or (file.schema.metadata or {}).get(b"eigenmerge") != _FORMAT:
            raise CorruptObjectError(f"{name} is not a table of spectra")
        for index in range(file.num_record_batches):
            batch = file.get_batch(index)
            batch.validate(full=True)
            for number in range(batch.num_rows):
                yield _from_arrow(batch.slice(number, 1), name)
    except CorruptObjectError:
        raise
    except _UNREADABLE as error:
        raise CorruptObjectError(f"{name} is damaged ({str(error)[:100]})") from None


class _TableRanges:
    """A large table as a file for Arrow, which reads its footer and one row at a time."""

    closed = False

    def __init__(self, store: Store, key: str, size: int) -> None:
        self._store, self._key, self._size = store, key, size
        self._position = 0

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = position + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, num_bytes: int) -> bytes:
        start, stop = self._position, min(self._position + num_bytes, self._size)
        if not 0 <= stop - start <= _LONGEST_ROW_BYTES:
            raise CorruptObjectError(
                f"{self._store.display(self._key)}: a row of {stop - start} bytes, expected at most"
                f" {_LONGEST_ROW_BYTES}"
            )
        self._position = stop
        return self._store.read_range(self._key, start, stop)

    def close(self) -> None:
        self.closed = True


def _to_arrow(row: TableRow) -> pa.RecordBatch:
    spectrum = row.spectrum
    statistics = dict(sorted(spectrum.statistics.items()))
    values, data = _numbers(spectrum.values), [_numbers(statistic) for statistic in statistics.values()]
    facts: dict[str, Any] = {
        "name": row.name,
        "spectrum_key": row.spectrum_key,
        "kind": spectrum.kind,
        "rows": spectrum.shape[0],
        "columns": spectrum.shape[1],
        "num_experts": spectrum.num_experts,
        "dtype": dtype_name(spectrum.values.dtype),
        "blocks": sorted(spectrum.left),
        "statistics": list(statistics),
        "statistic_dtypes": [dtype_name(statistic.dtype) for statistic in statistics.values()],
        "statistic_widths": [tensor.shape[1] if tensor.ndim == 2 else None for tensor in statistics.values()],
        "info": json.dumps(dict(spectrum.info), sort_keys=True),
    }
    arrays = [pa.array([value], type=_COLUMNS[name]) for name, value in facts.items()]
    edges = np.cumsum([0, *map(len, data)], dtype=np.int32)
    numbers = pa.array(np.concatenate([np.empty(0), *data]), type=pa.float64())
    inner = pa.ListArray.from_arrays(pa.array(edges, type=pa.int32()), numbers, type=_NUMBERS)
    arrays.append(pa.ListArray.from_arrays([0, len(values)], pa.array(values), type=_NUMBERS))
    arrays.append(pa.ListArray.from_arrays([0, len(data)], inner, type=_COLUMNS["statistic_data"]))
    arrays.append(pa.array([_checksum(facts, values, data)], type=pa.string()))
    return pa.record_batch(arrays, schema=_SCHEMA)


def _from_arrow(row: pa.RecordBatch, name: str) -> TableRow:
    facts = {column: row.column(column)[0].as_py() for column in list(_COLUMNS)[:-3]}
    values = _entries(row.column("values")[0]).to_numpy()  # `flatten` would import pyarrow.compute, 0.2 s
    data = [_entries(entry).to_numpy() for entry in _entries(row.column("statistic_data")[0])]
    if _checksum(facts, values, data) != row.column("checksum")[0].as_py():
        raise CorruptObjectError(f"{name}: the row of {str(facts['name'])[:200]!r} fails its checksum")
    dtype = TORCH_DTYPES[facts["dtype"]]
    count, rows, columns = len(values), facts["rows"], facts["columns"]
    statistics: dict[str, torch.Tensor] = {}
    kinds = zip(facts["statistics"], facts["statistic_dtypes"], facts["statistic_widths"], data, strict=True)
    for statistic, kind, width, numbers in kinds:
        found = torch.tensor(numbers).to(TORCH_DTYPES[kind])
        statistics[statistic] = found if width is None else found.reshape(count, width)
    spectrum = Spectrum(
        kind=facts["kind"],
        shape=(rows, columns),
        num_experts=facts["num_experts"],
        values=torch.tensor(values).to(dtype),
        right=torch.empty((count, columns), dtype=dtype, device="meta"),
        left={block: torch.empty((count, rows), dtype=dtype, device="meta") for block in facts["blocks"]},
        statistics=statistics,
        info=parse_json_object(facts["info"].encode(), name, _LONGEST_JSON_BYTES, finite=False),
    )
    return TableRow(facts["name"], facts["spectrum_key"], spectrum)


def _entries(scalar: pa.Scalar) -> pa.Array:
    return cast("pa.ListScalar", scalar).values


def _numbers(tensor: torch.Tensor) -> Numbers:
    # Exact: float64 represents every float32 and every integer below 2^53.
    return tensor.detach().to("cpu", torch.float64).reshape(-1).numpy()


def _checksum(facts: Mapping[str, Any], values: Numbers, data: list[Numbers]) -> str:
    head = json.dumps(facts, sort_keys=True).encode()
    return hash_chunks([head, *(np.ascontiguousarray(numbers).data for numbers in (values, *data))])
