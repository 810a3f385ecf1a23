"""The format of spectrum files: offsets that follow from the description, and descriptions that are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eigenmerge.core.cache.spectra.format import (
    BYTE_ALIGNMENT,
    MAGIC,
    ROWS_PER_BATCH,
    TORCH_DTYPES,
    Column,
    Description,
    FileLayout,
    build_schema,
    checksum,
    dtype_name,
    head_bytes,
    padded_size,
    parse_head,
)
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.formats.digest import hash_bytes
from eigenmerge.core.storage.store import Store

from ..examples import spectrum

KEY = "spectra/w.arrow"
columns = st.builds(
    Column, st.text("abc", min_size=1), st.sampled_from(list(TORCH_DTYPES)), st.none() | st.integers(1, 9)
)


def written(folder: Path, directions: int) -> bytes:
    store = Store(str(folder))
    write_spectrum(store, KEY, spectrum(directions), provenance={})
    return store.read(KEY)


@pytest.mark.parametrize("directions", [1, 255, 256, 257, 700])
def test_offsets_are_those_of_arrow(tmp_path: Path, directions: int) -> None:
    content = written(tmp_path, directions)
    layout = parse_head(content, len(content), KEY).layout
    with pa.memory_map(str(tmp_path / KEY)) as source:
        whole = source.read_buffer()
        file = pa.ipc.open_file(pa.BufferReader(whole))
        assert file.num_record_batches == layout.num_batches
        for number in range(layout.num_batches):
            batch = file.get_batch(number)
            assert layout.rows(number)[1] - layout.rows(number)[0] == batch.num_rows
            for column in layout.columns:
                data = [buffer for buffer in batch.column(column.name).buffers() if buffer is not None][-1]
                start, stop = layout.span(number, [column])
                assert data.address - whole.address == start
                assert stop - start == padded_size(layout.column_bytes(number, column))
    assert layout.first_batch % BYTE_ALIGNMENT == 0 and layout.end <= len(content)


def test_a_spectrum_without_directions_has_no_batches(tmp_path: Path) -> None:
    content = written(tmp_path, 0)
    layout = parse_head(content, len(content), KEY).layout
    assert (layout.num_batches, layout.end) == (0, 0)


@given(st.integers(0, 2000), st.lists(columns, max_size=3), st.lists(columns, max_size=3))
def test_spans_tile_the_file(directions: int, small: list[Column], vectors: list[Column]) -> None:
    unique = {column.name: column for column in (*small, *vectors)}
    layout = FileLayout(directions, tuple(unique.values()), (), 64, first_batch=128)
    position = layout.first_batch
    for batch in range(layout.num_batches):
        position += layout.message_bytes
        for column in layout.columns:
            start, stop = layout.span(batch, [column])
            assert start == position and stop % 8 == start % 8
            position = stop
    if layout.num_batches and layout.columns:
        assert layout.end == position
        assert layout.rows(layout.num_batches - 1)[1] == directions


@pytest.mark.parametrize(("size", "padded"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_padded_size(size: int, padded: int) -> None:
    assert padded_size(size) == padded


def test_names_of_dtypes() -> None:
    assert [dtype_name(dtype) for dtype in TORCH_DTYPES.values()] == list(TORCH_DTYPES)
    assert TORCH_DTYPES["float32"] == torch.float32


def test_a_checksum_is_of_the_concatenation() -> None:
    data = torch.arange(10, dtype=torch.uint8)
    assert checksum([data[:3], data[3:]]) == checksum([data]) == hash_bytes(bytes(range(10)))


def test_the_first_16_bytes_give_the_length_of_the_description(tmp_path: Path) -> None:
    content = written(tmp_path, 3)
    length = head_bytes(content[:16], len(content), KEY)
    assert parse_head(content[:length], len(content), KEY).layout.num_directions == 3
    for head in (b"", content[:15], b"PAR1" + content[4:16]):
        with pytest.raises(CorruptObjectError, match="not an Arrow file"):
            head_bytes(head, len(content), KEY)
    with pytest.raises(CorruptObjectError, match="its description should have"):
        head_bytes(content[:16], 100, KEY)


def test_a_file_shorter_than_its_description_says(tmp_path: Path) -> None:
    content = written(tmp_path, 300)
    end = parse_head(content, len(content), KEY).layout.end
    with pytest.raises(CorruptObjectError, match=f"truncated: {end - 1} bytes, expected at least {end}"):
        parse_head(content, end - 1, KEY)


def described(changes: dict[str, Any]) -> bytes:
    """The head of a file whose description has a valid checksum and any content."""
    layout = FileLayout(2, (Column("value", "float32", None),), (Column("right", "float32", 3),), 128)
    facts = {"kind": "svd", "shape": [2, 3], "key": KEY}
    schema = build_schema(Description(facts, layout, ("a",), ("b",)))
    metadata = dict(schema.metadata or {})
    content = json.loads(metadata[b"eigenmerge"]) | changes
    text = json.dumps({name: value for name, value in content.items() if value is not ...}).encode()
    changed = schema.with_metadata(metadata | {b"eigenmerge": text, b"eigenmerge_sha256": hash_bytes(text).encode()})
    return MAGIC + changed.serialize().to_pybytes()


def test_what_is_built_is_parsed() -> None:
    description = parse_head(described({}), 10_000, KEY)
    assert [column.name for column in description.layout.columns] == ["value", "right"]
    assert (description.small_checksums, description.vector_checksums) == (("a",), ("b",))
    assert description.facts["kind"] == "svd"


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"rows_per_batch": ROWS_PER_BATCH + 1},
        {"num_directions": -1},
        {"num_directions": 2**40},
        {"num_directions": 2.0},
        {"num_directions": ROWS_PER_BATCH + 1},  # then two checksums are needed
        {"message_bytes": None},
        {"columns": "value"},
        {"columns": [["value", "float16", None]]},
        {"columns": [["value", "float32"]]},
        {"small_checksums": []},
        {"vector_checksums": {}},
    ],
    ids=str,
)
def test_a_description_that_cannot_be_read(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptObjectError, match="its description cannot be read"):
        parse_head(described(changes), 10_000, KEY)


def test_columns_that_differ_from_the_schema() -> None:
    with pytest.raises(CorruptObjectError, match="its columns differ from its description"):
        parse_head(described({"columns": [["value", "float64", None], ["right", "float32", 3]]}), 10_000, KEY)


def test_a_description_that_fails_its_checksum(tmp_path: Path) -> None:
    content = written(tmp_path, 3)
    changed = content.replace(b'"kind":"interference"', b'"kind":"interferenco"')
    with pytest.raises(CorruptObjectError, match="its description fails its checksum"):
        parse_head(changed, len(changed), KEY)
