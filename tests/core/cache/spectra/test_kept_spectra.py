"""Spectra in memory: the same numbers as those of the store, whole ones only, and never more bytes than allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from eigenmerge.core.cache.spectra.cache import SpectrumCache
from eigenmerge.core.cache.spectra.kept_spectra import KeptSpectra
from eigenmerge.core.cache.spectra.writer import write_spectrum
from eigenmerge.core.errors import ObjectNotFoundError
from eigenmerge.core.numerics.apply_filter import Factors
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.planning.plan import RunSettings
from eigenmerge.core.storage.store import Store

from ..examples import assert_same_spectrum, spectrum

KEYS = ("spectra/a.arrow", "spectra/b.arrow")
DIRECTIONS = 300


@pytest.fixture
def store(place: Callable[[str], Store]) -> Store:
    store = place("store")
    for key in KEYS:
        write_spectrum(store, key, spectrum(DIRECTIONS), provenance={})
    return store


def size() -> int:
    kept = spectrum(DIRECTIONS)
    tensors = [kept.values, kept.right, *kept.left.values(), *kept.statistics.values()]
    return sum(tensor.nbytes for tensor in tensors)


def first(count: int) -> Callable[[Spectrum], Factors]:
    return lambda found: Factors({"target": (torch.arange(found.num_directions) < count).float()}, count)


def not_called() -> Spectrum:
    raise AssertionError("the store has the spectrum")


def test_what_fits_is_kept_and_the_rest_is_read(store: Store) -> None:
    kept = KeptSpectra(size() + 10)
    assert kept.read_values(store, KEYS[0], None).spectrum.right.device.type == "cpu"
    assert kept.read_values(store, KEYS[1], None).spectrum.right.device.type == "meta"
    assert kept.num_bytes == size()
    assert kept.get(KEYS[0]) is kept.read_values(store, KEYS[0], None) and kept.get(KEYS[1]) is None


@pytest.mark.parametrize("max_bytes", [0, 10**9])
def test_a_cache_gives_the_same_spectra_with_them(store: Store, max_bytes: int) -> None:
    kept = KeptSpectra(max_bytes)
    with_kept = SpectrumCache(store, RunSettings(), torch.device("cpu"), torch.float32, kept)
    without = SpectrumCache(store, RunSettings(), torch.device("cpu"), torch.float32)
    for key in KEYS:
        for count in (10, 290, 300, 0):
            found = with_kept.factored(key, not_called, first(count), {"tensor": key})
            expected = without.factored(key, not_called, first(count), {"tensor": key})
            assert_same_spectrum(found[0], expected[0])
            assert torch.equal(found[1].weights["target"], expected[1].weights["target"])
    assert kept.num_bytes == (2 * size() if max_bytes else 0)


def test_what_is_kept_is_not_read_again(store: Store) -> None:
    kept = KeptSpectra(10**9)
    kept.read_values(store, KEYS[0], None)
    store.delete(KEYS)
    cache = SpectrumCache(store, RunSettings(), torch.device("cpu"), torch.float32, kept)
    assert cache.factored(KEYS[0], not_called, first(20), {"tensor": "a"})[0].num_directions == 20
    with pytest.raises(ObjectNotFoundError):
        kept.read_values(store, KEYS[1], None)
    assert kept.num_bytes == size()
