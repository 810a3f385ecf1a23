"""Merge one matrix with a spectral method: take its spectrum from the store or decompose, filter, calibrate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..cache.alignments import AlignedExpTimes
from ..cache.reports import Origin
from ..cache.spectra.cache import SpectrumCache
from ..cache.spectra.table_file import TableRow
from ..errors import NonFiniteError
from ..numerics.apply_filter import Factors
from ..numerics.method import SpectralMethod
from ..numerics.registry import get_planned_method
from ..numerics.rounding import arithmetic_epsilon, singular_value_cut
from ..numerics.spectrum import Spectrum
from ..numerics.svd.svc import calibration_warning, flat_spectrum_warning, svc_decompose, svc_factors, svc_of_filtered
from ..numerics.task_vectors import TaskVectors
from ..planning.plan import MatrixView, RunSettings, TensorPlan
from ..recipe.parts import SvcCalibration
from ..storage.store import Store
from .calibrated_direct import MergedDelta, without_weights
from .expert_stream import ExpertStream
from .kept_sums import KeptSums


@dataclass(frozen=True, slots=True)
class SpectralFacts:
    """What a report states about the spectra of one tensor.

    rank : directions that the filters kept
    energy : share of the sum of the eigenvalues in those directions, 0 to 1
    origin : "computed" if any spectrum was decomposed by this run
    spectrum_key : of the first matrix
    """

    rank: int
    energy: float
    origin: Origin
    spectrum_key: str
    notes: tuple[str, ...] = ()


def combine_facts(facts: Sequence[SpectralFacts]) -> SpectralFacts:
    """Return the facts of a tensor that consists of several matrices: the ranks add up, the smallest energy counts."""
    return SpectralFacts(
        rank=sum(one.rank for one in facts),
        energy=min(one.energy for one in facts),
        origin="computed" if any(one.origin == "computed" for one in facts) else facts[-1].origin,
        spectrum_key=facts[0].spectrum_key,
        notes=tuple(note for one in facts for note in one.notes),
    )


class SpectralMerger:
    """Computes the filtered spectra of the matrices of one shard.

    Parameters
    ----------
    sums : sums over experts that are kept between runs, for the tensors whose plan has a key for them
    """

    def __init__(
        self, settings: RunSettings, store: Store, sums: KeptSums, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._settings = settings
        self._sums = sums
        self._spectra = SpectrumCache(store, settings, device, dtype)
        self._aligned_exp_times = AlignedExpTimes(store)

    @property
    def notes(self) -> list[str]:
        """Spectra that were damaged and have been computed again."""
        return self._spectra.notes

    @property
    def rows(self) -> list[TableRow]:
        """Values and statistics of all spectra so far."""
        return self._spectra.rows

    def filtered_spectrum(self, stream: ExpertStream) -> tuple[Spectrum, Factors, SpectralFacts]:
        """Return one matrix' spectrum, and the factors that make the merged delta of it; calibrated by SVC if planned.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf
        """
        tensor = stream.tensor
        key = _spectrum_key(stream)
        method, parameters = planned_method(tensor)
        parameters = self._aligned(parameters, tensor, key)
        values: list[torch.Tensor] = []

        def factors_of(spectrum: Spectrum) -> Factors:
            values[:] = [spectrum.values]
            return method.factors(spectrum, parameters)

        decompose = partial(self._decompose, method, parameters, stream)
        spectrum, factors, origin = self._spectra.factored(key, decompose, factors_of, self._provenance(method, stream))
        facts = SpectralFacts(factors.rank, _energy(values[0], factors.rank), origin, key)
        if "svc" not in tensor.calibration:
            return spectrum, factors, facts
        calibrated, calibrated_factors, notes = self._calibrated(method, stream, spectrum, factors)
        return calibrated, calibrated_factors, SpectralFacts(facts.rank, facts.energy, origin, key, notes)

    def calibrated(self, stream: ExpertStream, delta: MergedDelta) -> tuple[Spectrum, Factors, SpectralFacts]:
        """Return the spectrum of one matrix that a direct method merges, and the factors of SVC.

        Neither the merged delta nor the experts are read where the store has the spectrum.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf
        """
        tensor, key = stream.tensor, _spectrum_key(stream)
        values: list[torch.Tensor] = []

        def factors_of(spectrum: Spectrum) -> Factors:
            values[:] = [spectrum.values]
            return _svc_factors(tensor, spectrum)

        provenance = _svc_provenance(stream, tensor.method)
        spectrum, factors, origin = self._spectra.factored(
            key, lambda: svc_decompose(delta.matrix(stream.view), without_weights(stream)), factors_of, provenance
        )
        rank = _numerical_rank(values[0], min(spectrum.shape))
        warning = flat_spectrum_warning(spectrum)
        notes = (warning,) if warning is not None else ()
        return spectrum, factors, SpectralFacts(rank, _energy(values[0], rank), origin, key, notes)

    def largest_value(self, stream: ExpertStream) -> tuple[str, float, Origin]:
        """Return the key of one matrix' spectrum, its largest value, and whether this call computed the spectrum.

        The spectrum is in the store afterwards if the recipe keeps spectra. The value is 0 where all experts are zero.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf, and `allow_nonfinite` is false; with it the value is 0
        """
        key = _spectrum_key(stream)
        method, parameters = planned_method(stream.tensor)
        decompose = partial(self._decompose, method, parameters, stream)
        try:
            values, origin = self._spectra.values(key, decompose, self._provenance(method, stream))
        except NonFiniteError:
            if not self._settings.allow_nonfinite or stream.tensor.base is None:
                raise
            return key, 0.0, "none"
        return key, float(values[0]) if len(values) else 0.0, origin

    def _decompose(self, method: SpectralMethod[Any, Any], parameters: Any, stream: ExpertStream) -> Spectrum:
        return method.decompose(self._first_pass(stream), parameters)

    def _aligned(self, parameters: Any, tensor: TensorPlan, key: str) -> Any:
        """Return the parameters with this layer's own filter time, where that depends on the other layers."""
        if tensor.alignment_key is None:
            return parameters
        time = self._aligned_exp_times.exp_time(
            tensor.alignment_key, key, parameters.exp_time, parameters.alignment_rho
        )
        return parameters.model_copy(update={"exp_time": time})

    def _calibrated(
        self, method: SpectralMethod[Any, Any], stream: ExpertStream, spectrum: Spectrum, factors: Factors
    ) -> tuple[Spectrum, Factors, tuple[str, ...]]:
        """Apply SVC to the merged delta. Its spectrum is kept too, so that another alpha reads no expert."""
        tensor, view = stream.tensor, stream.view
        key = tensor.calibration_key if view is None else view.calibration_key
        assert key is not None, "the planner sets a key for every calibration"
        found, calibrated, _ = self._spectra.factored(
            key,
            lambda: svc_of_filtered(spectrum, factors, self._second_pass(stream)),
            partial(_svc_factors, tensor),
            _svc_provenance(stream, method.name),
        )
        warning = flat_spectrum_warning(found)
        # The plan has warned about methods for which this is always so.
        notes = (warning,) if warning is not None and calibration_warning(method.name) is None else ()
        return found, calibrated, notes

    def _first_pass(self, stream: ExpertStream) -> TaskVectors:
        key = _sums_key(stream)
        return stream if key is None else self._sums.task_vectors(stream, key, stream.tensor.members)

    def _second_pass(self, stream: ExpertStream) -> TaskVectors:
        key = _sums_key(stream)
        return stream if key is None else self._sums.second_pass(stream, key, stream.tensor.members)

    def _provenance(self, method: SpectralMethod[Any, Any], stream: ExpertStream) -> dict[str, object]:
        tensor, view = stream.tensor, stream.view
        return {
            "tensor": tensor.name,
            "part": view.label if view else None,
            "method": method.name,
            "algorithm_version": method.algorithm_version,
            "arithmetic": self._settings.arithmetic,
            "weights": [expert.parameters.get("weight", 1.0) for expert in tensor.experts],
        }


def planned_method(tensor: TensorPlan) -> tuple[SpectralMethod[Any, Any], Any]:
    """Return the spectral method of a tensor and its validated parameters."""
    assert tensor.method is not None, "the planner sets a method for what is merged"
    method = get_planned_method(tensor.method, tensor.method_package)
    assert isinstance(method, SpectralMethod), f"{tensor.method} has no spectrum"
    return method, method.Parameters.model_validate(dict(tensor.parameters))


def _svc_factors(tensor: TensorPlan, spectrum: Spectrum) -> Factors:
    svc = SvcCalibration.model_validate(tensor.calibration["svc"])
    return svc_factors(spectrum, svc.alpha, svc.count, tensor.method)


def _svc_provenance(stream: ExpertStream, after: str | None) -> dict[str, object]:
    return {"tensor": stream.tensor.name, "part": stream.view.label if stream.view else None, "after": after}


def _numerical_rank(values: torch.Tensor, order: int) -> int:
    """Return the number of singular values above the rounding of the arithmetic."""
    largest = float(values[0]) if len(values) else 0.0
    return int((values > singular_value_cut(largest, order, arithmetic_epsilon(values.dtype))).sum())


def _energy(values: torch.Tensor, rank: int) -> float:
    """Return the share of the values' sum in the first `rank` directions."""
    total = float(values.sum())
    return min(1.0, float(values[:rank].sum()) / total) if total > 0 else 0.0


def _spectrum_key(stream: ExpertStream) -> str:
    view: MatrixView | None = stream.view
    key = stream.tensor.spectrum_key if view is None else view.spectrum_key
    assert key is not None, "the planner sets a key for every decomposition"
    return key


def _sums_key(stream: ExpertStream) -> str | None:
    return stream.tensor.sums_key if stream.view is None else stream.view.sums_key
