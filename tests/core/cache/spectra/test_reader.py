"""Spectra in a store: exact round trips, only the bytes that are needed, and no damage that goes unnoticed."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.cache.spectra.format import ROWS_PER_BATCH
from eigenmerge.core.cache.spectra.reader import read_spectrum, verify_spectrum
from eigenmerge.core.cache.spectra.writer import as_stored, write_spectrum
from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError, StoreError
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.storage.store import Store

from ..examples import assert_same_spectrum
from ..examples import spectrum as make_spectrum

Place = Callable[[str], Store]
KEY = "spectra/abc.arrow"


def first(spectrum: Spectrum, count: int) -> Spectrum:
    return dataclasses.replace(
        spectrum,
        values=spectrum.values[:count],
        right=spectrum.right[:count],
        left={name: block[:count] for name, block in spectrum.left.items()},
        statistics={name: statistic[:count] for name, statistic in spectrum.statistics.items()},
    )


class TestRoundTrip:
    @pytest.mark.parametrize("directions", [0, 1, 37, 256, 257, 700])
    def test_everything_comes_back_exactly(self, place: Place, directions: int) -> None:
        store, spectrum = place("store"), make_spectrum(directions)
        written = write_spectrum(store, KEY, spectrum, provenance={"tensor": "a.weight", "weights": [0.5, 1]})
        assert written == store.info(KEY).size
        found = read_spectrum(store, KEY)
        assert_same_spectrum(found.spectrum, spectrum)
        assert found.provenance == {"tensor": "a.weight", "weights": [0.5, 1]}
        assert found.has_vectors
        verify_spectrum(store, KEY)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, place: Place, dtype: torch.dtype) -> None:
        store, spectrum = place("store"), make_spectrum(300, dtype=dtype)
        write_spectrum(store, KEY, spectrum, provenance={})
        assert_same_spectrum(read_spectrum(store, KEY).spectrum, spectrum)

    def test_vectors_in_another_dtype(self, place: Place) -> None:
        store, spectrum = place("store"), make_spectrum(300, dtype=torch.float64)
        write_spectrum(store, KEY, spectrum, provenance={}, vector_dtype=torch.float32)
        found = read_spectrum(store, KEY).spectrum
        assert found.values.dtype == torch.float64
        assert found.right.dtype == torch.float32
        assert_same_spectrum(found, as_stored(spectrum, torch.float32))

    @pytest.mark.parametrize("top", [0, 1, 100, 256, 257, 512, 600, 700, 10_000])
    def test_the_first_directions(self, place: Place, top: int) -> None:
        store, spectrum = place("store"), make_spectrum(700)
        write_spectrum(store, KEY, spectrum, provenance={})
        assert_same_spectrum(read_spectrum(store, KEY, top=top).spectrum, first(spectrum, top))

    @pytest.mark.parametrize("mode", ["full", "values"])
    def test_values_without_vectors(self, place: Place, mode: str) -> None:
        store, spectrum = place("store"), make_spectrum(700)
        write_spectrum(store, KEY, spectrum, provenance={}, mode=mode)  # type: ignore[arg-type]
        found = read_spectrum(store, KEY, values_only=True)
        assert found.has_vectors == (mode == "full")
        assert found.spectrum.right.is_meta and found.spectrum.left["sum"].shape == (700, 11)
        assert torch.equal(found.spectrum.values, spectrum.values)
        assert torch.equal(found.spectrum.statistics["projection"], spectrum.statistics["projection"])
        assert read_spectrum(store, KEY).spectrum.right.is_meta == (mode == "values")
        verify_spectrum(store, KEY)

    def test_tensors_that_are_views(self, place: Place) -> None:
        spectrum = make_spectrum(300)
        views = dataclasses.replace(
            spectrum, right=spectrum.right.T.contiguous().T, values=spectrum.values.flip(0).flip(0)
        )
        write_spectrum(place("store"), KEY, views, provenance={})
        assert_same_spectrum(read_spectrum(place("store"), KEY).spectrum, spectrum)

    def test_the_same_spectrum_has_the_same_bytes(self, place: Place) -> None:
        store = place("store")
        contents = set()
        for _ in range(2):
            write_spectrum(store, KEY, make_spectrum(300), provenance={"b": 1, "a": 2})
            contents.add(store.read(KEY))
        assert len(contents) == 1


class TestArrow:
    def test_any_arrow_tool_reads_it(self, tmp_path: Path) -> None:
        store, spectrum = Store(str(tmp_path)), make_spectrum(700)
        write_spectrum(store, KEY, spectrum, provenance={})
        with pa.memory_map(str(tmp_path / KEY)) as source:
            file = pa.ipc.open_file(source)
            assert file.schema.names == ["value", "energy", "expert", "projection", "right", "left_sum", "left_target"]
            assert str(file.schema.field("right").type) == "fixed_size_list<item: float not null>[37]"
            assert [file.get_batch(number).num_rows for number in range(3)] == [256, 256, 188]
            table = file.read_all()
        assert torch.equal(torch.tensor(table["value"].to_numpy()), spectrum.values)
        left = table["left_target"].combine_chunks().flatten().to_numpy()
        assert torch.equal(torch.tensor(left).reshape(700, 11), spectrum.left["target"])

    def test_buffers_are_aligned_and_not_compressed(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        write_spectrum(store, KEY, make_spectrum(512 + 48), provenance={})
        with pa.memory_map(str(tmp_path / KEY)) as source:
            whole = source.read_buffer()
            file = pa.ipc.open_file(pa.BufferReader(whole))
            places = [
                buffer.address - whole.address
                for number in range(file.num_record_batches)
                for column in file.get_batch(number).columns
                for buffer in column.buffers()
                if buffer is not None
            ]
        assert len(places) == 3 * 7
        assert {place % 64 for place in places} == {0}
        assert all(0 < place < whole.size for place in places)  # in the file itself, so nothing was unpacked

    def test_a_spectrum_of_one_batch_is_not_copied(self, tmp_path: Path) -> None:
        store, spectrum = Store(str(tmp_path)), make_spectrum(ROWS_PER_BATCH)
        write_spectrum(store, KEY, spectrum, provenance={})
        found = read_spectrum(store, KEY).spectrum
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = [line for line in maps if line.endswith(KEY)]
        bounds = [tuple(int(part, 16) for part in line.split()[0].split("-")) for line in mapped]
        assert all(any(low <= t.data_ptr() < high for low, high in bounds) for t in (found.right, found.left["sum"]))
        found.right.zero_()  # private: the file keeps its numbers
        verify_spectrum(store, KEY)


class TestBytesRead:
    """On a store that is not local, what is not wanted is not fetched."""

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, list[tuple[int, int]]]:
        store = Store(f"memory://{uuid.uuid4().hex}")
        write_spectrum(store, KEY, make_spectrum(2000, rows=300, columns=500), provenance={})
        backend, ranges = store.backend, []
        original_range, original_head = backend.read_range, backend.read_head

        def read_range(key: str, start: int, stop: int, etag: str = "") -> bytes:
            ranges.append((start, stop))
            return original_range(key, start, stop)

        def read_head(key: str, num_bytes: int) -> tuple[bytes, int]:
            ranges.append((0, num_bytes))
            return original_head(key, num_bytes)

        monkeypatch.setattr(backend, "read_range", read_range)
        monkeypatch.setattr(backend, "read_head", read_head)
        return store, ranges

    def test_the_first_rows(self, counted: tuple[Store, list[tuple[int, int]]]) -> None:
        store, ranges = counted
        read_spectrum(store, KEY, top=300)
        fetched = sum(stop - start for start, stop in ranges)
        two_batches = 512 * (4 * 1100 + 8 * 5 + 4)
        assert two_batches < fetched < two_batches + 2**16 + 2**16
        assert len(ranges) <= 2 + 2 * 2 + 1

    def test_values_alone(self, counted: tuple[Store, list[tuple[int, int]]]) -> None:
        store, ranges = counted
        read_spectrum(store, KEY, values_only=True)
        fetched = sum(stop - start for start, stop in ranges)
        assert fetched < 2**16 + 2**16 + 2000 * 48
        assert fetched < store.info(KEY).size / 20


class TestDamage:
    def written(self, store: Store, directions: int = 300) -> bytes:
        write_spectrum(store, KEY, make_spectrum(directions), provenance={})
        return store.read(KEY)

    def test_missing(self, place: Place) -> None:
        with pytest.raises(ObjectNotFoundError, match=r"abc\.arrow"):
            read_spectrum(place("store"), KEY)

    @pytest.mark.parametrize("length", [0, 1, 8, 15, 16, 100, 2000, 5000, -20_000, -3000])
    def test_truncated(self, place: Place, length: int) -> None:
        store = place("store")
        data = self.written(store)
        store.write(KEY, data[:length])
        with pytest.raises(CorruptObjectError, match=r"abc\.arrow"):
            read_spectrum(store, KEY)

    def test_foreign(self, place: Place) -> None:
        store = place("store")
        for content in (b"", b"PAR1" * 100, b"ARROW1\x00\x00" + bytes(100), b"x" * 100_000):
            store.write(KEY, content)
            with pytest.raises(CorruptObjectError):
                read_spectrum(store, KEY)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, pa.schema([("a", pa.int64())])) as file:
            file.write_batch(pa.record_batch([pa.array([1])], names=["a"]))
        store.write(KEY, sink.getvalue().to_pybytes())
        with pytest.raises(CorruptObjectError):
            read_spectrum(store, KEY)

    def test_another_spectrum_under_this_name(self, place: Place) -> None:
        store = place("store")
        store.write("spectra/other.arrow", self.written(store))
        with pytest.raises(CorruptObjectError, match="another object"):
            read_spectrum(store, "spectra/other.arrow")

    def test_every_flipped_bit_is_noticed_or_harmless(self) -> None:
        """Harmless: in padding. What only other tools read is looked at by `verify_spectrum`."""
        store = Store("memory://spectra-bits")
        data = self.written(store, 20)
        spectrum, unnoticed = make_spectrum(20), 0
        for position in range(0, len(data), 7):
            damaged = bytearray(data)
            damaged[position] ^= 1 << (position % 8)
            store.write(KEY, bytes(damaged))
            try:
                assert_same_spectrum(read_spectrum(store, KEY).spectrum, spectrum)
                verify_spectrum(store, KEY)
                unnoticed += 1
            except CorruptObjectError:
                pass
        assert unnoticed < len(data) / 7 / 3

    def test_a_damaged_batch_does_not_hide_in_a_longer_read(self, place: Place) -> None:
        store = place("store")
        data = bytearray(self.written(store, 700))
        data[-3000] ^= 1
        store.write(KEY, bytes(data))
        read_spectrum(store, KEY, top=256)
        read_spectrum(store, KEY, values_only=True)
        with pytest.raises(CorruptObjectError, match="rows 512 to 700"):
            read_spectrum(store, KEY)

    @settings(deadline=None, max_examples=150)
    @given(st.data())
    def test_fuzz(self, data: st.DataObject) -> None:
        store = Store("memory://spectra-fuzz")
        content = bytearray(self.written(store, data.draw(st.sampled_from([0, 3, 260]))))
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(content)))
            piece = data.draw(st.binary(max_size=9))
            content[start : start + data.draw(st.sampled_from([len(piece), 0, 5]))] = piece
        store.write(KEY, bytes(content))
        for action in (read_spectrum, verify_spectrum):
            with contextlib.suppress(StoreError):
                action(store, KEY)
