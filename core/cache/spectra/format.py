"""The layout of a spectrum's Arrow IPC file, known from its first bytes.

A row is a direction. Columns: `value`, the statistics, `right`, one `left_<block>` for each block; the small columns
come first, so that they lie together in a batch. Batches have 256 rows (the last fewer), so every full batch has the
same length, and the place of each column of each batch follows from the description in the schema's metadata: a reader
fetches the beginning of the file and then exactly the ranges that it wants. Any Arrow tool reads the same file through
its footer.

The description is JSON with its own checksum, and holds one checksum per batch for the small columns and one for the
vectors. So what is read is checked, and no more than that has to be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from ...errors import CheckpointError, CorruptObjectError
from ...formats.bounded_json import parse_json_object
from ...formats.digest import hash_bytes, hash_chunks

FORMAT = 1
ROWS_PER_BATCH = 256  # times any number of 4 or 8 bytes: a multiple of 64
ALIGNMENT = 64
MAGIC = b"ARROW1\x00\x00"
_MESSAGE_PREFIX = b"\xff\xff\xff\xff"
LONGEST_DESCRIPTION_BYTES = 64 * 2**20
_DESCRIPTION = b"eigenmerge"
_CHECKSUM = b"eigenmerge_sha256"
_PADDING = b"padding"
_MOST_DIRECTIONS = 2**31

VALUE, RIGHT, LEFT = "value", "right", "left_"  # names of columns; the last one is a prefix

COLUMN_DTYPES = ("float32", "float64", "int32", "int64", "uint8")  # Arrow and torch use the same names
ARROW_TYPES: Mapping[str, pa.DataType] = {name: getattr(pa, name)() for name in COLUMN_DTYPES}
TORCH_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in COLUMN_DTYPES}


def padded(num_bytes: int) -> int:
    """What a column of that length takes in a batch: Arrow's writers fill up to a multiple of 8."""
    return num_bytes + -num_bytes % 8


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `width` numbers a row, or a plain number where width is None."""

    name: str
    dtype: str
    width: int | None

    @property
    def row_bytes(self) -> int:
        return ARROW_TYPES[self.dtype].bit_width // 8 * (1 if self.width is None else self.width)

    @property
    def field(self) -> pa.Field:
        item = ARROW_TYPES[self.dtype]
        if self.width is None:
            return pa.field(self.name, item, nullable=False)
        return pa.field(self.name, pa.list_(pa.field("item", item, nullable=False), self.width), nullable=False)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is. `small` columns come before `vectors` in every batch."""

    num_directions: int
    small: tuple[Column, ...]
    vectors: tuple[Column, ...]
    message_bytes: int  # of a batch, before its numbers
    first_batch: int = 0  # its place in the file

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.small + self.vectors

    @property
    def num_batches(self) -> int:
        return -(-self.num_directions // ROWS_PER_BATCH)

    @property
    def end(self) -> int:
        """The place after the last batch."""
        return self.body(self.num_batches - 1) + self._body_bytes(self.num_batches - 1) if self.num_batches else 0

    def rows(self, batch: int) -> tuple[int, int]:
        """The directions [start, stop) of a batch."""
        return batch * ROWS_PER_BATCH, min((batch + 1) * ROWS_PER_BATCH, self.num_directions)

    def body(self, batch: int) -> int:
        """The place of the numbers of a batch."""
        return self.first_batch + self.message_bytes + batch * (self.message_bytes + self._body_bytes(0))

    def column_bytes(self, batch: int, column: Column) -> int:
        start, stop = self.rows(batch)
        return (stop - start) * column.row_bytes

    def span(self, batch: int, columns: Sequence[Column]) -> tuple[int, int]:
        """The bytes [start, stop) of the file that hold these columns, which stand together, of a batch."""
        before = self.columns[: self.columns.index(columns[0])]
        start = self.body(batch) + sum(padded(self.column_bytes(batch, column)) for column in before)
        return start, start + sum(padded(self.column_bytes(batch, column)) for column in columns)

    def _body_bytes(self, batch: int) -> int:
        return sum(padded(self.column_bytes(batch, column)) for column in self.columns)


@dataclass(frozen=True, slots=True)
class Description:
    """Everything in the file but the numbers."""

    facts: Mapping[str, object]  # kind, shape, num_experts, info, provenance, key, ...
    layout: Layout
    small_checksums: tuple[str, ...]
    vector_checksums: tuple[str, ...]


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in TORCH_DTYPES.items() if known == dtype)


def checksum(pieces: Sequence[torch.Tensor]) -> str:
    """Of flat uint8 tensors, one after the other."""
    return hash_chunks(piece.numpy().data for piece in pieces)


def build_schema(description: Description) -> pa.Schema:
    """The schema with the description, padded so that the first batch begins at a multiple of 64."""
    layout = description.layout
    content = {
        "format": FORMAT,
        **description.facts,
        "num_directions": layout.num_directions,
        "rows_per_batch": ROWS_PER_BATCH,
        "message_bytes": layout.message_bytes,
        "columns": [[column.name, column.dtype, column.width] for column in layout.columns],
        "num_small_columns": len(layout.small),
        "small_checksums": list(description.small_checksums),
        "vector_checksums": list(description.vector_checksums),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    metadata = {_DESCRIPTION: text, _CHECKSUM: hash_bytes(text).encode()}
    schema = pa.schema([column.field for column in layout.columns])
    for length in range(2 * ALIGNMENT):
        candidate = schema.with_metadata({**metadata, _PADDING: b" " * length})
        if (len(MAGIC) + candidate.serialize().size) % ALIGNMENT == 0:
            return candidate
    raise AssertionError("a schema cannot be padded")


def head_bytes(head: bytes, size: int, name: str) -> int:
    """How much of the file the description takes, told by its first 16 bytes.

    Raises
    ------
    CorruptObjectError : no Arrow file, or a description that is longer than the file
    """
    if len(head) < 16 or not head.startswith(MAGIC + _MESSAGE_PREFIX):
        raise CorruptObjectError(f"{name} is not an Arrow file ({size} bytes)")
    length = 16 + int.from_bytes(head[12:16], "little", signed=True)
    if not 16 < length <= min(size, LONGEST_DESCRIPTION_BYTES):
        raise CorruptObjectError(f"{name}: its description claims {length} bytes, the file has {size}")
    return length


def parse_head(head: bytes, size: int, name: str) -> Description:
    """The description of a file of `size` bytes from its first `head_bytes`.

    Raises
    ------
    CorruptObjectError : anything that is not the beginning of a spectrum file of that size
    """
    length = head_bytes(head, size, name)
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(head[len(MAGIC) : length]))
    except (pa.ArrowException, ValueError, OSError, KeyError) as error:
        raise CorruptObjectError(f"{name}: its Arrow schema is damaged ({str(error)[:100]})") from None
    metadata = schema.metadata or {}
    text = metadata.get(_DESCRIPTION, b"")
    if hash_bytes(text).encode() != metadata.get(_CHECKSUM):
        raise CorruptObjectError(f"{name}: its description fails its checksum, or it is no spectrum")
    try:
        content = parse_json_object(text, name, LONGEST_DESCRIPTION_BYTES, finite=False)
        description = _description(content, length)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{name}: its description is not understood ({str(error)[:100]})") from None
    if schema.remove_metadata() != pa.schema([column.field for column in description.layout.columns]):
        raise CorruptObjectError(f"{name}: its columns are not the described ones")
    if description.layout.end > size:
        raise CorruptObjectError(f"{name} is truncated: {size} bytes, expected at least {description.layout.end}")
    return description


def _description(content: Mapping[str, object], first_batch: int) -> Description:
    if content["format"] != FORMAT or content["rows_per_batch"] != ROWS_PER_BATCH:
        raise ValueError(f"format {content['format']}, expected {FORMAT}")
    columns = tuple(_column(entry) for entry in _list(content["columns"]))
    num_small = _count(content["num_small_columns"])
    layout = Layout(
        num_directions=_count(content["num_directions"]),
        small=columns[:num_small],
        vectors=columns[num_small:],
        message_bytes=_count(content["message_bytes"]),
        first_batch=first_batch,
    )
    small, vectors = (tuple(map(str, _list(content[name]))) for name in ("small_checksums", "vector_checksums"))
    if not len(small) == len(vectors) == layout.num_batches:
        raise ValueError("a number of checksums that does not fit the number of batches")
    return Description(content, layout, small, vectors)


def _column(entry: object) -> Column:
    name, dtype, width = _list(entry)
    if not isinstance(name, str) or dtype not in ARROW_TYPES:
        raise ValueError("a column of an unknown type")
    return Column(name, str(dtype), None if width is None else _count(width))


def _list(found: object) -> list[object]:
    if not isinstance(found, list):
        raise TypeError("a list was expected")
    return found


def _count(found: object) -> int:
    if type(found) is not int or not 0 <= found < _MOST_DIRECTIONS:
        raise ValueError("a count was expected")
    return found
