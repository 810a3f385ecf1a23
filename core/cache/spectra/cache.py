"""Spectra of one run: read from the store if they are intact, otherwise computed and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from ...errors import CorruptObjectError, ObjectNotFoundError
from ...numerics.apply_filter import Factors
from ...numerics.interference.top_directions import count_kept, factors_around_anchor
from ...numerics.spectrum import Spectrum
from ...planning.keys import top_values_key
from ...planning.plan import RunSettings
from ...storage.store import Store
from ..reports import Origin
from .kept_spectra import KeptSpectra
from .reader import StoredSpectrum, read_spectrum
from .table_file import TableRow, table_name
from .writer import as_stored, rounded_as_stored, write_spectrum

Decompose = Callable[[], Spectrum]
FactorsOf = Callable[[Spectrum], Factors]


@dataclass(frozen=True, slots=True)
class TopRequest:
    """What a spectrum needs that is kept without the vectors of its last directions.

    whole_key : of the whole spectrum, which is read where the store has it, and never written
    tolerance : largest error that leaving these directions out may add, relative to the merged delta
    anchor : returns a new Tensor (M, K), a times the sum of the experts, for a given a
    """

    whole_key: str
    tolerance: float
    anchor: Callable[[float], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The factors of a filter on a spectrum that may be kept in part.

    needed : number of directions whose vectors the factors use
    kept : number of directions whose vectors are kept; None: not enough for the filter, or the spectrum is whole
    """

    factors: Factors
    needed: int
    kept: int | None


class SpectrumCache:
    """Reads and writes the spectra of one run.

    notes : which spectra were damaged and computed again, and which filters use more than is kept
    rows : values and statistics of every spectrum that was requested, for the table of the run

    Parameters
    ----------
    device, dtype : of the returned spectra; dtype is the arithmetic of the run
    kept : spectra of the store in memory, which other runs use too; None reads the store each time
    """

    def __init__(
        self,
        store: Store,
        settings: RunSettings,
        device: torch.device,
        dtype: torch.dtype,
        kept: KeptSpectra | None = None,
    ) -> None:
        self._store, self._kept = store, kept
        self._mode: Literal["full", "top", "values", "none"] = settings.spectra
        dtypes = {"float32": torch.float32, "float64": torch.float64, "arithmetic": dtype}
        self._vector_dtype = dtypes[settings.spectra_dtype]
        self._device, self._dtype = device, dtype
        self._damaged: list[str] = []
        self._beyond_top: list[str] = []
        self.rows: list[TableRow] = []

    @property
    def notes(self) -> list[str]:
        if not self._beyond_top:
            return self._damaged
        others = len(self._beyond_top) - 1
        more = f" (and {others} more of its shard)" if others else ""
        return [*self._damaged, self._beyond_top[0] + more]

    def factored(
        self,
        key: str,
        decompose: Decompose,
        factors_of: FactorsOf,
        provenance: Mapping[str, object],
        top: TopRequest | None = None,
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
        top : set where the spectrum is kept in part
        most_bytes : as for `read_spectrum`
        """
        head = self._read_head(key, top, most_bytes)
        if head is not None:
            chosen = _choose(self._to_arithmetic(head, vectors=False), factors_of, top)
            stored = self._read_vectors(key, chosen, head, provenance, top, most_bytes)
            if stored is not None:
                self._add_row(key, head, provenance)
                return self._to_arithmetic(stored), chosen.factors, "reused"
        spectrum = self._compute(key, decompose, provenance, top)
        chosen = _choose(spectrum, factors_of, top)
        if top is not None and chosen.kept is None:
            self._note_beyond(spectrum, chosen, provenance, again=head is not None)
        return _first_directions(spectrum, chosen.needed), chosen.factors, "computed"

    def values(
        self,
        key: str,
        decompose: Decompose,
        provenance: Mapping[str, object],
        top: TopRequest | None = None,
        most_bytes: int | None = None,
    ) -> tuple[torch.Tensor, Origin]:
        """Return the values of a spectrum and its origin; afterwards the store has what the recipe keeps of it."""
        head = self._read_values(top_values_key(key) if top is not None else key, most_bytes)
        if head is not None and (top is not None or head.has_vectors or self._mode in ("values", "none")):
            return head.spectrum.values, "reused"
        return self._compute(key, decompose, provenance, top).values, "computed"

    def _read_head(self, key: str, top: TopRequest | None, most_bytes: int | None) -> Spectrum | None:
        """Return values and statistics of all directions; None where the store has no spectrum with vectors."""
        if top is not None:
            head = self._read_values(top_values_key(key), most_bytes)
            if head is not None:
                return head.spectrum
        head = self._read_values(key if top is None else top.whole_key, most_bytes)
        return head.spectrum if head is not None and head.has_vectors else None

    def _read_vectors(
        self,
        key: str,
        chosen: _Chosen,
        head: Spectrum,
        provenance: Mapping[str, object],
        top: TopRequest | None,
        most_bytes: int | None,
    ) -> Spectrum | None:
        """Return a stored spectrum with the vectors that the factors use; None where the store lacks them."""
        if top is None:
            return self._read_first(key, chosen.needed, most_bytes)
        if chosen.kept is None:
            return self._read_first(top.whole_key, chosen.needed, most_bytes)
        found = self._read_first(key, chosen.needed, most_bytes)
        if found is None:
            kept = self._read_first(top.whole_key, chosen.kept, most_bytes)
            if kept is not None:  # of another run, which may be removed without this one
                self._write_top(key, head, kept, provenance)
                found = _first_directions(kept, chosen.needed)
        return found

    def _read_first(self, key: str, count: int, most_bytes: int | None) -> Spectrum | None:
        kept = self._kept.get(key) if self._kept is not None else None
        if kept is not None:
            return _first_directions(kept.spectrum, count)
        try:
            stored = read_spectrum(self._store, key, top=count, most_bytes=most_bytes)
        except ObjectNotFoundError:
            return None
        except CorruptObjectError as error:
            self._note_damage(error)
            return None
        return stored.spectrum if stored.has_vectors else None

    def _read_values(self, key: str, most_bytes: int | None) -> StoredSpectrum | None:
        """Return a stored spectrum without its vectors; None where it is missing or damaged."""
        try:
            if self._kept is not None:
                return self._kept.read_values(self._store, key, most_bytes)
            return read_spectrum(self._store, key, values_only=True, most_bytes=most_bytes)
        except ObjectNotFoundError:
            return None
        except CorruptObjectError as error:
            self._note_damage(error)
            return None

    def _note_damage(self, error: CorruptObjectError) -> None:
        self._damaged.append(f"{error}; computed again")

    def _note_beyond(
        self, spectrum: Spectrum, chosen: _Chosen, provenance: Mapping[str, object], *, again: bool
    ) -> None:
        kept = count_kept(spectrum.values, spectrum.shape[1])
        self._beyond_top.append(
            f"spectra: top keeps {kept} of {spectrum.num_directions} directions of {_name(provenance)}, and the filter"
            f" uses {chosen.needed}: " + ("decomposed again" if again else "a later run decomposes again")
        )

    def _compute(
        self, key: str, decompose: Decompose, provenance: Mapping[str, object], top: TopRequest | None
    ) -> Spectrum:
        spectrum = decompose()
        if top is not None:
            kept = count_kept(spectrum.values, spectrum.shape[1])
            self._write_top(key, spectrum, _first_directions(spectrum, kept), provenance)
        elif self._mode == "full":
            self._write(key, as_stored(spectrum, self._vector_dtype), provenance)
        elif self._mode == "values":
            self._write(key, without_vectors(spectrum), provenance, mode="values")
        # A run that computes the spectrum and one that finds it in the store, which another run may have kept, have to
        # write the same bytes: also where this run keeps none of it.
        spectrum = self._to_arithmetic(rounded_as_stored(spectrum, self._vector_dtype))
        self._add_row(key, spectrum, provenance)
        return spectrum

    def _write_top(self, key: str, head: Spectrum, kept: Spectrum, provenance: Mapping[str, object]) -> None:
        """Write the kept directions, and the values of all."""
        self._write(key, as_stored(kept, self._vector_dtype), provenance)
        write_spectrum(self._store, top_values_key(key), without_vectors(head), provenance=provenance, mode="values")

    def _write(
        self, key: str, spectrum: Spectrum, provenance: Mapping[str, object], mode: Literal["full", "values"] = "full"
    ) -> None:
        """Write a spectrum that is on the CPU: each pass over one on a GPU would copy it."""
        write_spectrum(self._store, key, spectrum, provenance=provenance, mode=mode, vector_dtype=self._vector_dtype)

    def _add_row(self, key: str, spectrum: Spectrum, provenance: Mapping[str, object]) -> None:
        if self._mode == "none":
            return
        self.rows.append(TableRow(_name(provenance), key, without_vectors(spectrum)))

    def _to_arithmetic(self, spectrum: Spectrum, *, vectors: bool = True) -> Spectrum:
        """Move a spectrum to the device of the run, its values and vectors in the arithmetic dtype."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._device).to(self._dtype)

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


def _choose(spectrum: Spectrum, factors_of: FactorsOf, top: TopRequest | None) -> _Chosen:
    """Return the factors on the directions that they use: of the kept ones and the anchor, where these are enough.

    Depends on the spectrum alone, and not on what the store has.
    """
    factors = factors_of(spectrum)
    if top is not None:
        kept = count_kept(spectrum.values, spectrum.shape[1])
        around = factors_around_anchor(spectrum, factors, kept)
        if around.error <= top.tolerance:
            needed = _count_used(around.factors)
            anchor = partial(top.anchor, around.anchor) if around.anchor else None
            return _Chosen(_first(around.factors, needed, anchor), needed, kept)
    needed = _count_used(factors)
    return _Chosen(_first(factors, needed), needed, None)


def _name(provenance: Mapping[str, object]) -> str:
    part = provenance.get("part")
    return table_name(str(provenance["tensor"]), str(part) if part else None)


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


def _first(factors: Factors, count: int, anchor: Callable[[], torch.Tensor] | None = None) -> Factors:
    return Factors({name: weight[:count] for name, weight in factors.weights.items()}, factors.rank, anchor)
