"""The spectrum cache: what is intact is read, what is not is computed once, and both give the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from eigenmerge.core.cache.spectra.cache import SpectrumCache, without_vectors
from eigenmerge.core.cache.spectra.format import most_spectrum_bytes
from eigenmerge.core.cache.spectra.reader import read_spectrum
from eigenmerge.core.numerics.apply_filter import Factors
from eigenmerge.core.numerics.spectrum import Spectrum
from eigenmerge.core.planning.cost.projection import spectrum_bytes
from eigenmerge.core.planning.plan import RunSettings
from eigenmerge.core.storage.store import Store

from ..examples import assert_same_numbers, assert_same_spectrum, assert_same_tensors, spectrum

Place = Callable[[str], Store]
KEY = "spectra/w.arrow"
PROVENANCE = {"tensor": "w"}
DIRECTIONS = 300


class Decompose:
    """Counts its calls."""

    def __init__(self, directions: int = DIRECTIONS, dtype: torch.dtype = torch.float32) -> None:
        self.calls = 0
        self._directions, self._dtype = directions, dtype

    def __call__(self) -> Spectrum:
        self.calls += 1
        return spectrum(self._directions, dtype=self._dtype)


def first_ten(found: Spectrum) -> Factors:
    """A filter of rank 10: from the values alone, as every filter."""
    weight = torch.where(torch.arange(found.num_directions) < 10, found.values, torch.zeros(()))
    return Factors({"target": weight, "sum": torch.zeros_like(weight)}, 10)


def no_direction(found: Spectrum) -> Factors:
    return Factors({"target": torch.zeros_like(found.values)}, 0)


def cache_of(store: Store, dtype: torch.dtype = torch.float32, **settings: str) -> SpectrumCache:
    return SpectrumCache(store, RunSettings(**settings), torch.device("cpu"), dtype)  # pyright: ignore[reportArgumentType]


def merged(found: Spectrum, factors: Factors) -> torch.Tensor:
    return sum(
        ((weight[:, None] * found.left[name]).T @ found.right for name, weight in factors.weights.items()),
        torch.zeros(found.shape),
    )


def test_computed_once_and_then_read(place: Place) -> None:
    store, decompose = place("store"), Decompose()
    full, full_factors, origin = cache_of(store).factored(KEY, decompose, first_ten, PROVENANCE)
    assert (origin, decompose.calls, full.num_directions) == ("computed", 1, 10)
    again = cache_of(store)
    top, factors, origin = again.factored(KEY, decompose, first_ten, PROVENANCE)
    assert (origin, decompose.calls, top.num_directions, factors.rank) == ("reused", 1, 10, 10)
    assert again.notes == []
    torch.testing.assert_close(merged(top, factors), merged(full, full_factors))


def test_a_filter_without_any_direction_reads_no_vectors(place: Place) -> None:
    store, decompose = place("store"), Decompose()
    cache_of(store).factored(KEY, decompose, first_ten, PROVENANCE)
    found, factors, origin = cache_of(store).factored(KEY, decompose, no_direction, PROVENANCE)
    assert (origin, found.num_directions, found.right.shape) == ("reused", 0, (0, 37))
    assert [len(weight) for weight in factors.weights.values()] == [0]


@pytest.mark.parametrize(("stored", "arithmetic"), [("float32", torch.float64), ("arithmetic", torch.float64)])
def test_a_run_that_computes_continues_with_what_it_stored(place: Place, stored: str, arithmetic: torch.dtype) -> None:
    """So that it writes the same bytes as a run that reads the spectrum."""
    store, decompose = place("store"), Decompose(dtype=torch.float64)
    computed, factors, _ = cache_of(store, arithmetic, spectra_dtype=stored).factored(
        KEY, decompose, first_ten, PROVENANCE
    )
    read, again, origin = cache_of(store, arithmetic, spectra_dtype=stored).factored(
        KEY, decompose, first_ten, PROVENANCE
    )
    assert origin == "reused" and computed.right.dtype == read.right.dtype == arithmetic
    assert_same_tensors(
        [read.right, read.left["sum"], again.weights["target"]],
        [computed.right[:10], computed.left["sum"][:10], factors.weights["target"][:10]],
    )
    assert (read_spectrum(store, KEY).spectrum.right.dtype == torch.float32) == (stored == "float32")
    assert torch.equal(computed.right, spectrum(DIRECTIONS, dtype=torch.float64).right[:10]) == (stored != "float32")


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "head", "vectors", "another spectrum"])
def test_a_damaged_spectrum_is_computed_again_with_a_note(place: Place, damage: str) -> None:
    store, decompose = place("store"), Decompose()
    cache_of(store).factored(KEY, decompose, first_ten, PROVENANCE)
    cache_of(store).factored("spectra/other.arrow", decompose, first_ten, PROVENANCE)
    content = store.read(KEY)
    vectors = content.index(spectrum(DIRECTIONS).right[0].numpy().tobytes())
    damaged = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "foreign": b"not ours" * 100,
        "head": content[:500] + b"\xff" + content[501:],
        "vectors": content[:vectors] + b"\xff" + content[vectors + 1 :],
        "another spectrum": store.read("spectra/other.arrow"),
    }
    store.write(KEY, damaged[damage])
    again = cache_of(store)
    found, _, origin = again.factored(KEY, decompose, first_ten, PROVENANCE)
    assert (origin, decompose.calls) == ("computed", 3)
    (note,) = again.notes
    assert "w.arrow" in note and note.endswith("; computed again")
    assert torch.equal(found.right, spectrum(DIRECTIONS).right[:10])
    assert_same_spectrum(read_spectrum(store, KEY).spectrum, spectrum(DIRECTIONS))
    assert cache_of(store).factored(KEY, decompose, first_ten, PROVENANCE)[2] == "reused", "it is intact again"


def test_values_alone_leave_the_whole_spectrum_in_the_store(place: Place) -> None:
    store, decompose = place("store"), Decompose()
    values, origin = cache_of(store).values(KEY, decompose, PROVENANCE)
    assert origin == "computed" and torch.equal(values, spectrum(DIRECTIONS).values)
    assert cache_of(store).values(KEY, decompose, PROVENANCE)[1] == "reused"
    assert cache_of(store).factored(KEY, decompose, first_ten, PROVENANCE)[2] == "reused"
    assert decompose.calls == 1


def test_with_values_only_vectors_are_computed_each_time(place: Place) -> None:
    store, decompose = place("store"), Decompose()
    settings = {"spectra": "values"}
    assert cache_of(store, **settings).values(KEY, decompose, PROVENANCE)[1] == "computed"
    assert cache_of(store, **settings).values(KEY, decompose, PROVENANCE)[1] == "reused"
    assert cache_of(store, **settings).factored(KEY, decompose, first_ten, PROVENANCE)[2] == "computed"
    assert not read_spectrum(store, KEY).has_vectors
    # A recipe that keeps vectors computes them once more and replaces the object.
    assert cache_of(store).values(KEY, decompose, PROVENANCE)[1] == "computed"
    assert read_spectrum(store, KEY).has_vectors and decompose.calls == 3


def test_with_none_nothing_is_written_or_listed(place: Place) -> None:
    store, decompose = place("store"), Decompose()
    cache = cache_of(store, spectra="none")
    for _ in range(2):
        assert cache.factored(KEY, decompose, first_ten, PROVENANCE)[2] == "computed"
    assert (cache.rows, list(store.list("")), decompose.calls) == ([], [], 2)


def test_rows_for_the_table_are_the_same_whether_computed_or_read(place: Place) -> None:
    store, decompose = place("store"), Decompose()
    computed, read = cache_of(store), cache_of(store)
    for cache in (computed, read):
        cache.factored(KEY, decompose, first_ten, PROVENANCE)
        cache.factored("spectra/q.arrow", decompose, first_ten, {"tensor": "qkv", "part": "q"})
    for one, other in zip(computed.rows, read.rows, strict=True):
        assert (one.name, one.spectrum_key) == (other.name, other.spectrum_key)
        assert_same_numbers(one.spectrum, other.spectrum)
        assert one.spectrum.right.is_meta and other.spectrum.right.is_meta
    assert [row.name for row in read.rows] == ["w", "qkv[q]"]


def test_without_vectors_keeps_shapes() -> None:
    full = spectrum(7)
    assert_same_numbers(without_vectors(full), full)
    assert without_vectors(replace(full)).left["sum"].shape == full.left["sum"].shape


def test_a_spectrum_that_is_larger_than_any_of_its_matrix_is_computed_again(place: Place) -> None:
    store, decompose = place("store"), Decompose()
    cache_of(store).factored(KEY, decompose, first_ten, PROVENANCE)
    size, again = store.info(KEY).size, cache_of(store)
    assert again.factored(KEY, decompose, first_ten, PROVENANCE, most_bytes=size)[2] == "reused"
    assert again.factored(KEY, decompose, first_ten, PROVENANCE, most_bytes=size - 1)[2] == "computed"
    assert again.values(KEY, decompose, PROVENANCE, most_bytes=size - 1)[1] == "computed"
    assert len(again.notes) == 2 and all("for a matrix of this shape; computed again" in note for note in again.notes)


def test_the_limit_is_above_what_the_plan_projects() -> None:
    for shape, experts in (((4096, 14336), 8), ((1, 7), 1), ((512, 512), 200)):
        projected = spectrum_bytes(shape, experts * max(shape), experts, RunSettings(spectra_dtype="float64"), experts)
        assert most_spectrum_bytes(shape, experts) > projected
