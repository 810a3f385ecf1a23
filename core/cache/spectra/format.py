"""Format of a spectrum file: an Arrow IPC file whose byte offsets all follow from its first bytes.

A row is one direction. Columns: `value`, the statistics, `right`, and one `left_<block>` for each block; the small
columns come first, so that they are contiguous in a batch. Batches have 256 rows (the last one may have fewer), so all
full batches have the same length, and the offset of each column in each batch follows from the description in the
schema's metadata. A reader fetches the beginning of the file and then the ranges that it needs. Other Arrow tools read
the same file through its footer.

The description is JSON with a checksum of its own. It has two checksums for each batch: of the small columns and of the
vectors. So a partial read can be checked without reading more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
import torch

from ...errors import CheckpointError, CorruptObjectError
from ...formats.bounded_json import parse_json_object
from ...formats.digest import hash_bytes, hash_chunks

FORMAT = 1
ROWS_PER_BATCH = 256  # times an element size of 4 or 8 bytes: a multiple of 64
BYTE_ALIGNMENT = 64
MAGIC = b"ARROW1\x00\x00"
_MESSAGE_PREFIX = b"\xff\xff\xff\xff"
_PREFIX_BYTES = 16  # magic, message prefix, length of the schema message
LONGEST_DESCRIPTION_BYTES = 64 * 2**20
_DESCRIPTION = b"eigenmerge"
_CHECKSUM = b"eigenmerge_sha256"
_PADDING = b"padding"
_MOST_DIRECTIONS = 2**31

VALUE, RIGHT, LEFT = "value", "right", "left_"  # column names; LEFT is a prefix

ARROW_TYPES: Mapping[str, pa.DataType] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
}
TORCH_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in ARROW_TYPES}


def padded_size(num_bytes: int) -> int:
    """Return the size of a column of `num_bytes` in a batch: Arrow pads to a multiple of 8."""
    return num_bytes + -num_bytes % 8


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `width` numbers in each row, or one plain number where width is None."""

    name: str
    dtype: str
    width: int | None

    @property
    def item_bytes(self) -> int:
        return ARROW_TYPES[self.dtype].bit_width // 8

    @property
    def row_bytes(self) -> int:
        return self.item_bytes * (1 if self.width is None else self.width)

    @property
    def field(self) -> pa.Field:
        item = ARROW_TYPES[self.dtype]
        if self.width is None:
            return pa.field(self.name, item, nullable=False)
        return pa.field(self.name, pa.list_(pa.field("item", item, nullable=False), self.width), nullable=False)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """Byte offsets of all columns of all batches. In every batch the `small` columns precede the `vectors`.

    message_bytes : size of a batch's message, which precedes its data
    first_batch : offset of the first batch in the file
    """

    num_directions: int
    small: tuple[Column, ...]
    vectors: tuple[Column, ...]
    message_bytes: int
    first_batch: int = 0

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.small + self.vectors

    @property
    def num_batches(self) -> int:
        return -(-self.num_directions // ROWS_PER_BATCH)

    @property
    def end(self) -> int:
        """Offset of the end of the last batch; 0 without directions."""
        last = self.num_batches - 1
        return self.data_offset(last) + self._data_bytes(last) if self.num_batches else 0

    def rows(self, batch: int) -> tuple[int, int]:
        """Return the directions [start, stop) of a batch."""
        return batch * ROWS_PER_BATCH, min((batch + 1) * ROWS_PER_BATCH, self.num_directions)

    def data_offset(self, batch: int) -> int:
        """Return the offset of a batch's data in the file."""
        return self.first_batch + self.message_bytes + batch * (self.message_bytes + self._data_bytes(0))

    def column_bytes(self, batch: int, column: Column) -> int:
        """Return the size of a column's data in a batch, without padding."""
        start, stop = self.rows(batch)
        return (stop - start) * column.row_bytes

    def span(self, batch: int, columns: Sequence[Column]) -> tuple[int, int]:
        """Return the byte range [start, stop) of the file that holds these adjacent columns of a batch."""
        before = self.columns[: self.columns.index(columns[0])]
        start = self.data_offset(batch) + self._padded_bytes(batch, before)
        return start, start + self._padded_bytes(batch, columns)

    def _data_bytes(self, batch: int) -> int:
        return self._padded_bytes(batch, self.columns)

    def _padded_bytes(self, batch: int, columns: Sequence[Column]) -> int:
        return sum(padded_size(self.column_bytes(batch, column)) for column in columns)


@dataclass(frozen=True, slots=True)
class Description:
    """The content of a spectrum file except its numbers.

    facts : kind, shape, num_experts, blocks, vectors_dtype, info, provenance, key
    """

    facts: Mapping[str, object]
    layout: FileLayout
    small_checksums: tuple[str, ...]
    vector_checksums: tuple[str, ...]

    @property
    def most_bytes(self) -> int:
        """No file with this description is larger: after the batches is a footer with the schema and their offsets."""
        layout = self.layout
        return layout.end + 4 * layout.first_batch + 256 * layout.num_batches + 2**20


def most_spectrum_bytes(shape: tuple[int, int], num_experts: int) -> int:
    """Return what no spectrum of a matrix of `shape` reaches, on either side: several times the largest of any method.

    The factored methods have at most as many directions as the experts together; a method has one block of left vectors
    for each expert at most, and fewer than a hundred statistics of 8 bytes.
    """
    longer = max(shape)
    directions = (num_experts + 1) * longer
    numbers = (num_experts + 3) * longer + 100 + 2 * num_experts
    return 2 * 8 * directions * numbers + 2 * LONGEST_DESCRIPTION_BYTES


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in spectrum files."""
    return next(name for name, known in TORCH_DTYPES.items() if known == dtype)


def checksum(pieces: Sequence[torch.Tensor]) -> str:
    """Return the sha256 of flat uint8 tensors, concatenated."""
    return hash_chunks(piece.numpy().data for piece in pieces)


def build_schema(description: Description) -> pa.Schema:
    """Return the schema with the description, padded so that the first batch begins at a multiple of 64 bytes."""
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
    for length in range(2 * BYTE_ALIGNMENT):
        candidate = schema.with_metadata({**metadata, _PADDING: b" " * length})
        if (len(MAGIC) + candidate.serialize().size) % BYTE_ALIGNMENT == 0:
            return candidate
    raise AssertionError(f"no padding aligns the schema to {BYTE_ALIGNMENT} bytes")


def head_bytes(head: bytes, size: int, name: str) -> int:
    """Return how many bytes the description takes at the beginning of the file, from the first 16 bytes.

    Parameters
    ----------
    size : of the whole file, in bytes

    Raises
    ------
    CorruptObjectError : not an Arrow file, or a description that is longer than the file
    """
    if len(head) < _PREFIX_BYTES or not head.startswith(MAGIC + _MESSAGE_PREFIX):
        raise CorruptObjectError(f"{name} is not an Arrow file ({size} bytes)")
    length = _PREFIX_BYTES + int.from_bytes(head[12:16], "little", signed=True)
    if not _PREFIX_BYTES < length <= min(size, LONGEST_DESCRIPTION_BYTES):
        raise CorruptObjectError(f"{name}: its description should have {length} bytes, the file has {size}")
    return length


def parse_head(head: bytes, size: int, name: str) -> Description:
    """Return the description of a file of `size` bytes from its first `head_bytes`.

    Raises
    ------
    CorruptObjectError : not the beginning of a spectrum file of that size
    """
    length = head_bytes(head, size, name)
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(head[len(MAGIC) : length]))
    except (pa.ArrowException, ValueError, OSError, KeyError) as error:
        raise CorruptObjectError(f"{name}: its Arrow schema is damaged ({str(error)[:100]})") from None
    metadata = schema.metadata or {}
    text = metadata.get(_DESCRIPTION, b"")
    if hash_bytes(text).encode() != metadata.get(_CHECKSUM):
        raise CorruptObjectError(f"{name}: its description fails its checksum, or it is not a spectrum")
    try:
        content = parse_json_object(text, name, LONGEST_DESCRIPTION_BYTES, finite=False)
        description = _parse_description(content, length)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(f"{name}: its description cannot be read ({str(error)[:100]})") from None
    if schema.remove_metadata() != pa.schema([column.field for column in description.layout.columns]):
        raise CorruptObjectError(f"{name}: its columns differ from its description")
    if description.layout.end > size:
        raise CorruptObjectError(f"{name} is truncated: {size} bytes, expected at least {description.layout.end}")
    if size > description.most_bytes:
        raise CorruptObjectError(f"{name} has {size} bytes, expected at most {description.most_bytes}")
    return description


def _parse_description(content: Mapping[str, object], first_batch: int) -> Description:
    if content["format"] != FORMAT or content["rows_per_batch"] != ROWS_PER_BATCH:
        raise ValueError(f"format {content['format']}, expected {FORMAT}")
    columns = tuple(_parse_column(entry) for entry in _as_list(content["columns"]))
    num_small = _as_count(content["num_small_columns"])
    layout = FileLayout(
        num_directions=_as_count(content["num_directions"]),
        small=columns[:num_small],
        vectors=columns[num_small:],
        message_bytes=_as_count(content["message_bytes"]),
        first_batch=first_batch,
    )
    small, vectors = (tuple(map(str, _as_list(content[name]))) for name in ("small_checksums", "vector_checksums"))
    if not len(small) == len(vectors) == layout.num_batches:
        raise ValueError(f"{len(small)} and {len(vectors)} checksums, expected {layout.num_batches}")
    return Description(content, layout, small, vectors)


def _parse_column(entry: object) -> Column:
    name, dtype, width = _as_list(entry)
    if not isinstance(name, str) or dtype not in ARROW_TYPES:
        raise ValueError("a column has an unknown type")
    return Column(name, str(dtype), None if width is None else _as_count(width))


def _as_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return cast("list[object]", value)


def _as_count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST_DIRECTIONS:
        raise ValueError(f"expected a count below {_MOST_DIRECTIONS}")
    return value
