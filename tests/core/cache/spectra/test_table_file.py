"""Tables of spectra: values and statistics come back exactly, and no damage is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.cache.spectra import table_file
from eigenmerge.core.cache.spectra.table_file import TableRow, read_run_table, write_run_table
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.store import Store

from ..examples import assert_same_numbers, spectrum

Place = Callable[[str], Store]
KEY = "runs/r/spectra.arrow"


def rows() -> list[TableRow]:
    dtypes = (torch.float32, torch.float64)
    return [TableRow(f"layer{n}", f"spectra/{n}.arrow", spectrum(n * 100, dtype=dtypes[n % 2])) for n in range(4)]


def test_values_and_statistics_come_back(place: Place) -> None:
    store = place("store")
    size = write_run_table(store, KEY, iter(rows()))
    assert size == store.info(KEY).size
    for row, expected in zip(read_run_table(store, KEY), rows(), strict=True):
        assert (row.name, row.spectrum_key) == (expected.name, expected.spectrum_key)
        assert row.spectrum.right.is_meta
        assert_same_numbers(row.spectrum, expected.spectrum)


def test_an_empty_table(place: Place) -> None:
    write_run_table(place("store"), KEY, [])
    assert list(read_run_table(place("store"), KEY)) == []


def test_rows_are_written_as_they_are_produced(place: Place) -> None:
    """An error in the middle leaves no table."""
    store = place("store")

    def failing() -> Iterator[TableRow]:
        yield rows()[0]
        raise ValueError("of the second row")

    with pytest.raises(ValueError, match="second row"):
        write_run_table(store, KEY, failing())
    with pytest.raises(ObjectNotFoundError):
        list(read_run_table(store, KEY))


def test_the_same_rows_have_the_same_bytes(place: Place) -> None:
    store = place("store")
    contents = set()
    for _ in range(2):
        write_run_table(store, KEY, rows())
        contents.add(store.read(KEY))
    assert len(contents) == 1


def test_any_arrow_tool_reads_it(tmp_path: Path) -> None:
    write_run_table(Store(str(tmp_path)), KEY, rows())
    with pa.memory_map(str(tmp_path / KEY)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table["name"].to_pylist() == [row.name for row in rows()]
    assert table["values"][1].as_py() == rows()[1].spectrum.values.tolist()


def test_another_arrow_file_is_refused(place: Place) -> None:
    store = place("store")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("name", pa.string())])) as file:
        file.write_batch(pa.record_batch([pa.array(["a"])], names=["name"]))
    store.write(KEY, sink.getvalue().to_pybytes())
    with pytest.raises(CorruptObjectError, match="not a table of spectra"):
        list(read_run_table(store, KEY))


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1, -2000])
def test_truncated(place: Place, length: int) -> None:
    store = place("store")
    write_run_table(store, KEY, rows())
    store.write(KEY, store.read(KEY)[:length])
    with pytest.raises(CorruptObjectError, match=r"spectra\.arrow"):
        list(read_run_table(store, KEY))


def test_a_changed_number_names_its_row(place: Place) -> None:
    store = place("store")
    write_run_table(store, KEY, rows())
    number = rows()[3].spectrum.values.double().numpy()[17:18].tobytes()
    content = store.read(KEY)
    assert content.count(number) == 1
    store.write(KEY, content.replace(number, bytes(8)))
    with pytest.raises(CorruptObjectError, match="the row of 'layer3' fails its checksum"):
        list(read_run_table(store, KEY))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=9), st.booleans())
def test_any_damage_is_noticed_or_harmless(position: int, piece: bytes, cut: bool) -> None:
    store, written = Store("memory://table-fuzz"), rows()[1:2]
    write_run_table(store, KEY, written)
    content = bytearray(store.read(KEY))
    position %= len(content)
    content[position : None if cut else position + len(piece)] = piece
    store.write(KEY, bytes(content))
    try:
        found = list(read_run_table(store, KEY))
    except CorruptObjectError:
        return
    # Padding, or bytes that stayed the same.
    assert [torch.equal(row.spectrum.values, written[0].spectrum.values) for row in found] in ([True], [])


def test_a_large_table_is_read_row_by_row(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place("store")
    write_run_table(store, KEY, rows())
    expected = list(read_run_table(store, KEY))
    monkeypatch.setattr(table_file, "_SMALL_TABLE_BYTES", 100)
    for row, small in zip(read_run_table(store, KEY), expected, strict=True):
        assert row.name == small.name
        assert_same_numbers(row.spectrum, small.spectrum)
    monkeypatch.setattr(table_file, "_LONGEST_ROW_BYTES", 400)
    with pytest.raises(CorruptObjectError, match=r"a row of [0-9]+ bytes, expected at most 400"):
        list(read_run_table(store, KEY))
