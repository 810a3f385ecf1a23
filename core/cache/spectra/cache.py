"""Spectra in the store: taken from there if they are whole, computed and left there if not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import torch

from ...errors import CorruptObjectError, ObjectNotFoundError
from ...numerics.spectrum import Factors, Spectrum
from ...planning.plan import RunSettings
from ...storage.store import Store
from ..reports import Origin
from .reader import read_spectrum, stored_form, write_spectrum
from .table_file import TableRow

FactorsOf = Callable[[Spectrum], Factors]


class SpectrumCache:
    """Spectra of one run.

    notes : what was found damaged and computed again
    rows : values and statistics of every spectrum that was asked for, for the table of the run
    """

    def __init__(self, store: Store, settings: RunSettings, device: torch.device, dtype: torch.dtype) -> None:
        self._store = store
        self._keeps: Literal["full", "values", "none"] = settings.spectra
        names = {"float32": torch.float32, "float64": torch.float64, "arithmetic": dtype}
        self._vector_dtype = names[settings.spectra_dtype]
        self._device, self._dtype = device, dtype
        self.notes: list[str] = []
        self.rows: list[TableRow] = []

    def factored(
        self,
        key: str,
        decompose: Callable[[], Spectrum],
        factors_of: FactorsOf,
        provenance: Mapping[str, object],
    ) -> tuple[Spectrum, Factors, Origin]:
        """A spectrum with as many directions as its factors need, the factors, and where it came from.

        Of a stored spectrum the values and statistics are read first: they decide the factors. The vectors follow, only
        as far down as a factor is not zero.
        """
        try:
            head = read_spectrum(self._store, key, values_only=True)
            if head.has_vectors:
                factors = factors_of(self._placed(head.spectrum, vectors=False))
                needed = _last_used(factors)
                stored = read_spectrum(self._store, key, top=needed)
                self._list(key, head.spectrum, provenance)
                return self._placed(stored.spectrum), _first(factors, needed), "reused"
        except ObjectNotFoundError:
            pass
        except CorruptObjectError as error:
            self.notes.append(f"{error}; computed again")
        spectrum = self._computed(key, decompose, provenance)
        return spectrum, factors_of(spectrum), "computed"

    def values(
        self, key: str, decompose: Callable[[], Spectrum], provenance: Mapping[str, object]
    ) -> tuple[torch.Tensor, Origin]:
        """The values alone, of a spectrum that is in the store afterwards as whole as the recipe keeps it."""
        try:
            head = read_spectrum(self._store, key, values_only=True)
            if head.has_vectors or self._keeps != "full":
                return head.spectrum.values, "reused"
        except ObjectNotFoundError:
            pass
        except CorruptObjectError as error:
            self.notes.append(f"{error}; computed again")
        return self._computed(key, decompose, provenance).values, "computed"

    def _computed(self, key: str, decompose: Callable[[], Spectrum], provenance: Mapping[str, object]) -> Spectrum:
        spectrum = decompose()
        if self._keeps != "none":
            write_spectrum(
                self._store,
                key,
                spectrum,
                provenance=provenance,
                mode=self._keeps,
                vector_dtype=self._vector_dtype,
            )
            # As it will be read: a run that computes and a run that finds it must write the same bytes.
            spectrum = self._placed(stored_form(spectrum, self._vector_dtype))
        self._list(key, spectrum, provenance)
        return spectrum

    def _list(self, key: str, spectrum: Spectrum, provenance: Mapping[str, object]) -> None:
        if self._keeps == "none":
            return
        part = provenance.get("part")
        name = f"{provenance['tensor']}[{part}]" if part else str(provenance["tensor"])
        self.rows.append(TableRow(name, key, without_vectors(spectrum)))

    def _placed(self, spectrum: Spectrum, *, vectors: bool = True) -> Spectrum:
        """On the device, in the arithmetic dtype."""

        def place(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._device, self._dtype)

        return dataclasses.replace(
            spectrum,
            values=place(spectrum.values),
            statistics={name: statistic.to(self._device) for name, statistic in spectrum.statistics.items()},
            right=place(spectrum.right) if vectors else spectrum.right,
            left={name: place(block) if vectors else block for name, block in spectrum.left.items()},
        )


def without_vectors(spectrum: Spectrum) -> Spectrum:
    """Values and statistics; the vectors keep their shapes alone."""

    def shape_of(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return dataclasses.replace(
        spectrum,
        values=spectrum.values.cpu(),
        statistics={name: statistic.cpu() for name, statistic in spectrum.statistics.items()},
        right=shape_of(spectrum.right),
        left={name: shape_of(block) for name, block in spectrum.left.items()},
    )


def _last_used(factors: Factors) -> int:
    """One more than the last direction with a weight that is not zero."""
    used = torch.zeros(0, dtype=torch.bool)
    for weight in factors.weights.values():
        used = weight != 0 if not len(used) else used | (weight != 0)
    index = used.nonzero()
    return int(index[-1]) + 1 if len(index) else 0


def _first(factors: Factors, count: int) -> Factors:
    return Factors({name: weight[:count] for name, weight in factors.weights.items()}, factors.rank)
