"""Merge one matrix with a spectral method: take its spectrum from the store or decompose, filter, calibrate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from ..cache.alignments import AlignedExpTimes
from ..cache.reports import Origin
from ..cache.spectra.cache import SpectrumCache, TopRequest
from ..cache.spectra.format import most_spectrum_bytes
from ..cache.spectra.kept_spectra import KeptSpectra
from ..cache.spectra.table_file import TableRow
from ..errors import NonFiniteError
from ..numerics.apply_filter import Factors, low_rank_form
from ..numerics.interference.expert_probes import energy_within, measured_faster_as_matrix
from ..numerics.interference.rounding import arithmetic_epsilon, singular_value_cut
from ..numerics.interference.top_directions import TOLERANCE
from ..numerics.method import Side, SpectralMethod
from ..numerics.registry import get_planned_method
from ..numerics.spectrum import Spectrum
from ..numerics.svd.side_deltas import FilteredSide, add_sides, svc_of_sides
from ..numerics.svd.svc import calibration_warning, flat_spectrum_warning, svc_decompose, svc_factors
from ..numerics.task_vectors import LowRank, TaskVectors, TransposedTaskVectors
from ..planning.keys import probed_key
from ..planning.plan import Decomposition, RunSettings, TensorPlan, decompositions, part_label
from ..recipe.parts import SvcCalibration
from ..storage.store import Store
from .calibrated_direct import DeltaToCalibrate, without_weights
from .expert_stream import ExpertStream
from .expert_sum import ExpertSum
from .kept_sums import KeptSums
from .measured_experts import MeasuredExperts, can_measure
from .spectral_facts import SpectralFacts


class SpectralMerger:
    """Computes the filtered spectra of the matrices of one shard.

    Parameters
    ----------
    sums : sums over experts that are kept between runs, for the tensors whose plan has a key for them
    measures : measure the experts; their probes are kept beside the spectra
    kept : spectra of the store in memory
    """

    def __init__(
        self,
        settings: RunSettings,
        store: Store,
        sums: KeptSums,
        device: torch.device,
        dtype: torch.dtype,
        *,
        measures: bool = False,
        kept: KeptSpectra | None = None,
    ) -> None:
        self._settings = settings
        self._store, self._measures = store, measures
        self._notes_on_probes: list[str] = []
        self._sums = sums
        self._spectra = SpectrumCache(store, settings, device, dtype, kept)
        self._aligned_exp_times = AlignedExpTimes(store)

    @property
    def notes(self) -> list[str]:
        """Spectra that were damaged and computed again, and spectra of which a filter uses more than is kept."""
        return self._spectra.notes + self._notes_on_probes

    @property
    def rows(self) -> list[TableRow]:
        """Values and statistics of all spectra so far."""
        return self._spectra.rows

    def merged_delta(self, stream: ExpertStream) -> tuple[torch.Tensor | LowRank, SpectralFacts]:
        """Return the merged delta of one matrix, (out, in), calibrated by SVC if planned.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf
        """
        tensor = stream.tensor
        method, parameters = planned_method(tensor)
        sides = method.sides(parameters, stream.shape)
        planned = decompositions(tensor, stream.view)
        facts: list[SpectralFacts] = []
        experts = self._measured(stream, stream, planned)
        within: tuple[float, ...] = ()

        def filter_sides() -> Iterator[FilteredSide]:
            nonlocal within
            for side, one in zip(sides, planned, strict=True):
                assert side.over_outputs == one.over_outputs, "the plan has the sides of the method"
                spectrum, factors, found = self._filtered(method, parameters, stream, side, one, experts)
                facts.append(found)
                if experts is not None and not side.over_outputs:
                    within = energy_within(experts.probes(), spectrum.right[: found.rank])
                yield side, spectrum, factors
                del spectrum, factors

        notes: tuple[str, ...] = ()
        svc_change: float | None = None
        if "svc" in tensor.calibration:
            spectrum, factors, notes = self._calibrated(method, stream, sides, filter_sides())
            svc_change = _svc_change(spectrum, factors)
            delta: torch.Tensor | LowRank = LowRank(*low_rank_form(spectrum, factors))
        else:
            delta = add_sides(sides, filter_sides(), stream.shape)
        delta = _to_measure(delta, stream, experts)
        origin: Origin = "computed" if any(one.origin == "computed" for one in facts) else facts[0].origin
        outputs = facts[1] if len(facts) > 1 else None
        measures = None if experts is None else replace(experts.measure(delta), within=within)
        return delta, replace(
            facts[0], origin=origin, notes=notes, outputs=outputs, measures=measures, svc_change=svc_change
        )

    def _measured(
        self, stream: ExpertStream, vectors: TaskVectors, planned: Sequence[Decomposition]
    ) -> MeasuredExperts | None:
        """Return the experts of one matrix to measure.

        None where they are not measured: some have kept sums, or SVC does not count all of them.
        """
        key = probed_key(planned)
        if vectors.num_experts != stream.num_experts or not can_measure(stream.num_experts, stream.shape):
            return None
        if not self._measures or key is None:
            return None
        # Spectra that are not kept, or without vectors, are computed in every run, from the experts.
        store = self._store if self._settings.spectra in ("full", "top") else None
        return MeasuredExperts(vectors, store, key, self._notes_on_probes)

    def _filtered(
        self,
        method: SpectralMethod[Any, Any],
        parameters: Any,
        stream: ExpertStream,
        side: Side,
        planned: Decomposition,
        experts: MeasuredExperts | None,
    ) -> tuple[Spectrum, Factors, SpectralFacts]:
        """Return the spectrum of one side, and the factors that make its delta."""
        key = planned.spectrum_key
        parameters = self._aligned(parameters, planned)
        values: list[torch.Tensor] = []

        def factors_of(spectrum: Spectrum) -> Factors:
            values[:] = [spectrum.values]
            return method.factors(spectrum, parameters)

        decompose, top = self._decompose(method, parameters, stream, side, planned, experts)
        provenance = self._provenance(method, stream, planned)
        spectrum, factors, origin = self._spectra.factored(
            key, decompose, factors_of, provenance, top, _most_bytes(stream)
        )
        facts = SpectralFacts(factors.rank, _energy(values[0], factors.rank), origin, key, noise=_noise_share(spectrum))
        return spectrum, factors, facts

    def calibrated(self, stream: ExpertStream, delta: DeltaToCalibrate) -> tuple[torch.Tensor | LowRank, SpectralFacts]:
        """Return the merged delta of one matrix that a direct method merges, calibrated by SVC.

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

        unweighted = without_weights(stream)
        experts = self._measured(stream, unweighted, decompositions(tensor, stream.view))

        def decompose() -> Spectrum:
            found = svc_decompose(delta.matrix(stream.view), unweighted if experts is None else experts.vectors())
            if experts is not None:
                experts.keep()
            return found

        provenance = _svc_provenance(stream, tensor.method)
        spectrum, factors, origin = self._spectra.factored(
            key,
            decompose,
            factors_of,
            provenance,
            most_bytes=_most_bytes(stream),
        )
        rank = _numerical_rank(values[0], min(spectrum.shape))
        warning = flat_spectrum_warning(spectrum)
        notes = (warning,) if warning is not None else ()
        merged = _to_measure(LowRank(*low_rank_form(spectrum, factors)), stream, experts)
        measures = None if experts is None else experts.measure(merged)
        energy, change = _energy(values[0], rank), _svc_change(spectrum, factors)
        return merged, SpectralFacts(rank, energy, origin, key, notes, measures=measures, svc_change=change)

    def largest_values(self, stream: ExpertStream) -> list[tuple[str, float, Origin]]:
        """Return of each decomposition of one matrix its key, its largest value, and whether this call computed it.

        The spectra are in the store afterwards if the recipe keeps spectra. The value is 0 where all experts are zero.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf, and `allow_nonfinite` is false; with it the value is 0
        """
        method, parameters = planned_method(stream.tensor)
        found: list[tuple[str, float, Origin]] = []
        planned = decompositions(stream.tensor, stream.view)
        experts = self._measured(stream, stream, planned)
        for side, one in zip(method.sides(parameters, stream.shape), planned, strict=True):
            decompose, top = self._decompose(method, parameters, stream, side, one, experts)
            provenance = self._provenance(method, stream, one)
            try:
                values, origin = self._spectra.values(one.spectrum_key, decompose, provenance, top, _most_bytes(stream))
            except NonFiniteError:
                if not self._settings.allow_nonfinite or stream.tensor.base is None:
                    raise
                found.append((one.spectrum_key, 0.0, "none"))
            else:
                found.append((one.spectrum_key, float(values[0]) if len(values) else 0.0, origin))
        return found

    def _decompose(
        self,
        method: SpectralMethod[Any, Any],
        parameters: Any,
        stream: ExpertStream,
        side: Side,
        planned: Decomposition,
        experts: MeasuredExperts | None,
    ) -> tuple[Callable[[], Spectrum], TopRequest | None]:
        """Return a function that decomposes one side, and what its spectrum needs where it is kept in part."""

        def first_pass() -> TaskVectors:
            task_vectors = side.task_vectors_of(stream if experts is None else experts.vectors())
            if planned.sums_key is None:
                return task_vectors
            return self._sums.task_vectors(task_vectors, planned.sums_key, stream.tensor.members)

        def decomposed(vectors: TaskVectors) -> Spectrum:
            found = method.decompose(vectors, parameters)
            if experts is not None:
                experts.keep()
            return found

        if planned.whole_key is None:
            return lambda: decomposed(first_pass()), None
        total = ExpertSum(first_pass)
        # SVC's ratios of responses are no continuous function of the delta: nothing but rounding may change it.
        tolerance = 16 * arithmetic_epsilon(stream.dtype) if stream.tensor.calibration else TOLERANCE
        request = TopRequest(planned.whole_key, tolerance, total.times)
        return lambda: decomposed(total.recording()), request

    def _aligned(self, parameters: Any, planned: Decomposition) -> Any:
        """Return the parameters with this layer's own filter time, where that depends on the other layers."""
        if planned.alignment_key is None:
            return parameters
        time = self._aligned_exp_times.exp_time(
            planned.alignment_key, planned.spectrum_key, parameters.exp_time, parameters.alignment_rho
        )
        return parameters.model_copy(update={"exp_time": time})

    def _calibrated(
        self,
        method: SpectralMethod[Any, Any],
        stream: ExpertStream,
        sides: Sequence[Side],
        filtered: Iterator[FilteredSide],
    ) -> tuple[Spectrum, Factors, tuple[str, ...]]:
        """Apply SVC to the merged delta. Its spectrum is kept too, so that another alpha reads no expert."""
        tensor, view = stream.tensor, stream.view
        key = tensor.calibration_key if view is None else view.calibration_key
        assert key is not None, "the planner sets a key for every calibration"
        found, calibrated, _ = self._spectra.factored(
            key,
            lambda: svc_of_sides(sides, filtered, stream.shape, self._second_pass(stream)),
            partial(_svc_factors, tensor),
            _svc_provenance(stream, method.name),
            most_bytes=_most_bytes(stream),
        )
        for _ in filtered:  # where the calibration was in the store: the facts of all sides are reported
            pass
        warning = flat_spectrum_warning(found)
        # The plan has warned about methods for which this is always so.
        notes = (warning,) if warning is not None and calibration_warning(method.name) is None else ()
        return found, calibrated, notes

    def _second_pass(self, stream: ExpertStream) -> TaskVectors:
        """Return the experts, or their kept factors instead of them."""
        kept = decompositions(stream.tensor, stream.view)[0]
        if kept.sums_key is None:
            return stream
        members = stream.tensor.members
        if not kept.over_outputs:
            return self._sums.second_pass(stream, kept.sums_key, members)
        return TransposedTaskVectors(self._sums.second_pass(TransposedTaskVectors(stream), kept.sums_key, members))

    def _provenance(
        self, method: SpectralMethod[Any, Any], stream: ExpertStream, planned: Decomposition
    ) -> dict[str, object]:
        tensor = stream.tensor
        return {
            "tensor": tensor.name,
            "part": part_label(stream.view, planned.over_outputs),
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


def _to_measure(
    delta: torch.Tensor | LowRank, stream: ExpertStream, experts: MeasuredExperts | None
) -> torch.Tensor | LowRank:
    """Return the merged delta multiplied out where it is measured faster so and its factors are not stored."""
    if experts is None or not isinstance(delta, LowRank) or stream.tensor.stores_factors:
        return delta
    return delta.dense() if measured_faster_as_matrix(delta, stream.num_experts) else delta


def _most_bytes(stream: ExpertStream) -> int:
    return most_spectrum_bytes(stream.shape, stream.num_experts)


def _svc_factors(tensor: TensorPlan, spectrum: Spectrum) -> Factors:
    svc = SvcCalibration.model_validate(tensor.calibration["svc"])
    return svc_factors(spectrum, svc.alpha, svc.count, tensor.method)


def _svc_change(spectrum: Spectrum, factors: Factors) -> float:
    """Return how much SVC changes the merged delta, relative to it: the directions are orthonormal."""
    values, calibrated = spectrum.values.double(), factors.weights["left"].double()
    total = float(values.square().sum())
    return float(f"{(float((calibrated - values).square().sum()) / total) ** 0.5:.4g}") if total > 0 else 0.0


def _svc_provenance(stream: ExpertStream, after: str | None) -> dict[str, object]:
    return {"tensor": stream.tensor.name, "part": stream.view.label if stream.view else None, "after": after}


def _numerical_rank(values: torch.Tensor, order: int) -> int:
    """Return the number of singular values above the rounding of the arithmetic."""
    largest = float(values[0]) if len(values) else 0.0
    return int((values > singular_value_cut(largest, order, arithmetic_epsilon(values.dtype))).sum())


def _noise_share(spectrum: Spectrum) -> float | None:
    """Return the level of the rounding of storage relative to the largest singular value, as the spectrum states it."""
    known = spectrum.info.get("storage_noise")
    return float(cast("Mapping[str, float]", known)["share"]) if isinstance(known, Mapping) else None


def _energy(values: torch.Tensor, rank: int) -> float:
    """Return the share of the values' sum in the first `rank` directions."""
    total = float(values.sum())
    return min(1.0, float(values[:rank].sum()) / total) if total > 0 else 0.0


def _spectrum_key(stream: ExpertStream) -> str:
    key = stream.tensor.spectrum_key if stream.view is None else stream.view.spectrum_key
    assert key is not None, "the planner sets a key for every decomposition"
    return key
