"""Writing spectra: from any device, dtype and stride, one batch in memory, and the same bytes each time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from eigenmerge.core.cache.spectra.reader import read_spectrum, verify_spectrum
from eigenmerge.core.cache.spectra.writer import Mode, WriteOnlyFile, as_stored, write_spectrum
from eigenmerge.core.storage.store import Store

from ..examples import assert_same_spectrum, assert_same_tensors, spectrum

Place = Callable[[str], Store]
KEY = "spectra/w.arrow"


@pytest.mark.parametrize("vector_dtype", [None, torch.float32, torch.float64])
def test_as_stored_is_what_is_read(place: Place, vector_dtype: torch.dtype | None) -> None:
    store, given = place("store"), spectrum(300, dtype=torch.float64)
    write_spectrum(store, KEY, given, provenance={}, vector_dtype=vector_dtype)
    read = read_spectrum(store, KEY).spectrum
    assert_same_spectrum(read, as_stored(given, vector_dtype))
    assert read.values.dtype == torch.float64
    assert read.right.dtype == (vector_dtype or torch.float64)


def test_as_stored_keeps_what_is_stored_already() -> None:
    once = as_stored(spectrum(20, dtype=torch.float64), torch.float32)
    assert_same_spectrum(as_stored(once, torch.float32), once)


def test_the_returned_size_is_that_of_the_object(place: Place) -> None:
    store = place("store")
    sizes: dict[Mode, int] = {
        mode: write_spectrum(store, f"spectra/{mode}.arrow", spectrum(700), provenance={}, mode=mode)
        for mode in ("full", "values")
    }
    for mode, size in sizes.items():
        assert store.info(f"spectra/{mode}.arrow").size == size
    assert sizes["values"] * 4 < sizes["full"]


def test_tensors_of_any_stride(place: Place) -> None:
    given = spectrum(300)
    views = dataclasses.replace(
        given,
        right=given.right.T.contiguous().T,
        values=given.values.flip(0).flip(0),
        left={name: torch.cat([block, block], 1)[:, :11] for name, block in given.left.items()},
    )
    store = place("store")
    write_spectrum(store, KEY, views, provenance={})
    assert_same_spectrum(read_spectrum(store, KEY).spectrum, given)


def test_a_tensor_that_requires_gradients(tmp_path) -> None:
    store, given = Store(str(tmp_path)), spectrum(5)
    write_spectrum(store, KEY, dataclasses.replace(given, right=given.right.clone().requires_grad_()), provenance={})
    assert_same_tensors([read_spectrum(store, KEY).spectrum.right], [given.right])


def test_the_order_of_blocks_and_statistics_does_not_change_the_bytes(place: Place) -> None:
    store, given = place("store"), spectrum(300)
    reordered = dataclasses.replace(
        given,
        left=dict(reversed(given.left.items())),
        statistics=dict(reversed(given.statistics.items())),
    )
    write_spectrum(store, KEY, given, provenance={"b": 1, "a": 2})
    first = store.read(KEY)
    write_spectrum(store, KEY, reordered, provenance={"a": 2, "b": 1})
    assert store.read(KEY) == first


def test_a_spectrum_of_one_block_without_statistics(place: Place) -> None:
    store = place("store")
    given = dataclasses.replace(spectrum(9), left={"left": spectrum(9).left["sum"]}, statistics={})
    write_spectrum(store, KEY, given, provenance={})
    assert_same_spectrum(read_spectrum(store, KEY).spectrum, given)
    verify_spectrum(store, KEY)


@pytest.mark.parametrize("name", ["value", "right", "left_x"])
def test_a_statistic_may_not_have_the_name_of_another_column(tmp_path, name: str) -> None:
    clashing = dataclasses.replace(spectrum(3), statistics={name: torch.zeros(3)})
    with pytest.raises(AssertionError):
        write_spectrum(Store(str(tmp_path)), KEY, clashing, provenance={})
    assert list(Store(str(tmp_path)).list("")) == []


def test_the_file_for_pyarrow_passes_bytes_on() -> None:
    pieces: list[bytes] = []
    file = WriteOnlyFile(lambda piece: pieces.append(bytes(piece)))
    assert file.writable() and not file.readable()
    assert file.write(b"ab") == 2
    assert file.write(memoryview(torch.arange(2, dtype=torch.int32).numpy())) == 8
    assert pieces == [b"ab", bytes([0, 0, 0, 0, 1, 0, 0, 0])]
