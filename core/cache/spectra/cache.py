"""Spectra of one run: read from the store if they are intact, otherwise computed and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import torch

from ...errors import CorruptObjectError, ObjectNotFoundError
from ...numerics.apply_filter import Factors
from ...numerics.spectrum import Spectrum
from ...planning.plan import RunSettings
from ...storage.store import Store
from ..reports import Origin
from .reader import StoredSpectrum, read_spectrum
from .table_file import TableRow, table_name
from .writer import as_stored, write_spectrum

Decompose = Callable[[], Spectrum]
FactorsOf = Callable[[Spectrum], Factors]


class SpectrumCache:
    """Reads and writes the spectra of one run.

    notes : which spectra were damaged and computed again
    rows : values and statistics of every spectrum that was requested, for the table of the run

    Parameters
    ----------
    device, dtype : of the returned spectra; dtype is the arithmetic of the run
    """

    def __init__(self, store: Store, settings: RunSettings, device: torch.device, dtype: torch.dtype) -> None:
        self._store = store
        self._mode: Literal["full", "values", "none"] = settings.spectra
        dtypes = {"float32": torch.float32, "float64": torch.float64, "arithmetic": dtype}
        self._vector_dtype = dtypes[settings.spectra_dtype]
        self._device, self._dtype = device, dtype
        self.notes: list[str] = []
        self.rows: list[TableRow] = []

    def factored(
        self,
        key: str,
        decompose: Decompose,
        factors_of: FactorsOf,
        provenance: Mapping[str, object],
        most_bytes: int | None = None,
    ) -> tuple[Spectrum, Factors, Origin]:
        """Return a spectrum with as many directions as its factors need, the factors, and the origin of the spectrum.

        Values and statistics of a stored spectrum are read first, because they determine the factors. Then its vectors
        are read up to the last direction whose factor is not zero.

        Parameters
        ----------
        key : of the spectrum
        decompose : computes the spectrum if the store does not have it
        factors_of : computes the factors of a spectrum from its values and statistics
        provenance : see `write_spectrum`; "tensor" and "part" name the row in the table of the run
        most_bytes : as for `read_spectrum`
        """
        head = self._read_head(key, most_bytes)
        if head is not None and head.has_vectors:
            factors = factors_of(self._to_arithmetic(head.spectrum, vectors=False))
            needed = _count_used(factors)
            try:
                stored = read_spectrum(self._store, key, top=needed, most_bytes=most_bytes)
            except ObjectNotFoundError:
                pass
            except CorruptObjectError as error:
                self._note_damage(error)
            else:
                self._add_row(key, head.spectrum, provenance)
                return self._to_arithmetic(stored.spectrum), _first(factors, needed), "reused"
        spectrum = self._compute(key, decompose, provenance)
        factors = factors_of(spectrum)
        needed = _count_used(factors)
        return _first_directions(spectrum, needed), _first(factors, needed), "computed"

    def values(
        self, key: str, decompose: Decompose, provenance: Mapping[str, object], most_bytes: int | None = None
    ) -> tuple[torch.Tensor, Origin]:
        """Return the values of a spectrum and its origin; afterwards the store has what the recipe keeps of it."""
        head = self._read_head(key, most_bytes)
        if head is not None and (head.has_vectors or self._mode != "full"):
            return head.spectrum.values, "reused"
        return self._compute(key, decompose, provenance).values, "computed"

    def _read_head(self, key: str, most_bytes: int | None) -> StoredSpectrum | None:
        """Return a stored spectrum without its vectors; None where it is missing or damaged."""
        try:
            return read_spectrum(self._store, key, values_only=True, most_bytes=most_bytes)
        except ObjectNotFoundError:
            return None
        except CorruptObjectError as error:
            self._note_damage(error)
            return None

    def _note_damage(self, error: CorruptObjectError) -> None:
        self.notes.append(f"{error}; computed again")

    def _compute(self, key: str, decompose: Decompose, provenance: Mapping[str, object]) -> Spectrum:
        spectrum = decompose()
        if self._mode != "none":
            write_spectrum(
                self._store,
                key,
                spectrum,
                provenance=provenance,
                mode=self._mode,
                vector_dtype=self._vector_dtype,
            )
        # A run that computes the spectrum and one that finds it in the store, which another run may have kept, have to
        # write the same bytes: also where this run keeps none of it.
        spectrum = self._to_arithmetic(as_stored(spectrum, self._vector_dtype))
        self._add_row(key, spectrum, provenance)
        return spectrum

    def _add_row(self, key: str, spectrum: Spectrum, provenance: Mapping[str, object]) -> None:
        if self._mode == "none":
            return
        part = provenance.get("part")
        name = table_name(str(provenance["tensor"]), str(part) if part else None)
        self.rows.append(TableRow(name, key, without_vectors(spectrum)))

    def _to_arithmetic(self, spectrum: Spectrum, *, vectors: bool = True) -> Spectrum:
        """Move a spectrum to the device of the run, its values and vectors in the arithmetic dtype."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._device, self._dtype)

        return dataclasses.replace(
            spectrum,
            values=move(spectrum.values),
            statistics={name: statistic.to(self._device) for name, statistic in spectrum.statistics.items()},
            right=move(spectrum.right) if vectors else spectrum.right,
            left={name: move(block) if vectors else block for name, block in spectrum.left.items()},
        )


def without_vectors(spectrum: Spectrum) -> Spectrum:
    """Return values and statistics on the CPU; the vectors are on the "meta" device, which stores only their shapes."""

    def shape_of(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return dataclasses.replace(
        spectrum,
        values=spectrum.values.cpu(),
        statistics={name: statistic.cpu() for name, statistic in spectrum.statistics.items()},
        right=shape_of(spectrum.right),
        left={name: shape_of(block) for name, block in spectrum.left.items()},
    )


def _count_used(factors: Factors) -> int:
    """Return the number of directions up to the last one with a factor that is not zero."""
    used = torch.zeros(0, dtype=torch.bool)
    for weight in factors.weights.values():
        used = weight != 0 if not len(used) else used | (weight != 0)
    index = used.nonzero()
    return int(index[-1]) + 1 if len(index) else 0


def _first_directions(spectrum: Spectrum, count: int) -> Spectrum:
    """Return what `read_spectrum(top=count)` returns: all of the spectrum, restricted to the first directions."""
    return dataclasses.replace(
        spectrum,
        values=spectrum.values[:count],
        right=spectrum.right[:count],
        left={name: block[:count] for name, block in spectrum.left.items()},
        statistics={name: statistic[:count] for name, statistic in spectrum.statistics.items()},
    )


def _first(factors: Factors, count: int) -> Factors:
    return Factors({name: weight[:count] for name, weight in factors.weights.items()}, factors.rank)
