"""One output tensor: read, merge, cast once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..cache.alignments import AlignedExpTimes
from ..cache.reports import Origin, TensorReport
from ..cache.spectra.cache import SpectrumCache
from ..cache.spectra.table_file import TableRow
from ..errors import NonFiniteError
from ..formats.digest import hash_bytes
from ..numerics.method import DirectMethod, SpectralMethod
from ..numerics.registry import get_planned_method
from ..numerics.spectrum import Factors, Spectrum, apply_factors, low_rank_form
from ..numerics.svd.svc import calibration_warning, default_alpha, flat_spectrum_warning, svc_factors, svc_of_filtered
from ..numerics.task_vectors import LowRank, TaskVectors
from ..planning.plan import MatrixView, RunSettings, TensorPlan
from ..planning.shards import output_entries
from ..storage.checkpoints.tensor_reader import TensorReader
from ..storage.store import Store
from ..storage.torch_dtypes import torch_dtype
from .adapter_factors import mean_factors, nothing, stored_factors
from .expert_stream import ExpertStream
from .kept_sums import KeptSums, weighted_sum_of
from .row_placement import place_rows


class TensorMerger:
    """Merges tensors of one shard with one reader, one store, one device.

    `notes` collects what was found damaged and made again: facts of this run, not of the result.
    """

    def __init__(self, settings: RunSettings, store: Store, reader: TensorReader) -> None:
        self._settings = settings
        self._reader = reader
        self._device = torch.device(settings.device)
        self._dtype = torch.float64 if settings.arithmetic == "float64" else torch.float32
        self._spectra = SpectrumCache(store, settings, self._device, self._dtype)
        self._aligned_exp_times = AlignedExpTimes(store)
        self._sums = KeptSums(store, self._device, self._dtype)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32

    @property
    def notes(self) -> list[str]:
        return self._spectra.notes + self._sums.notes

    @property
    def spectra_rows(self) -> list[TableRow]:
        """Values and statistics of the spectra so far."""
        return self._spectra.rows

    @property
    def kept_bytes_read(self) -> int:
        """Bytes of kept sums that the store gave instead of experts."""
        return self._sums.bytes_read

    @torch.no_grad()  # not inference_mode: readers fill tensors from threads of their own, which are not in it
    def merge(self, tensor: TensorPlan) -> tuple[memoryview, TensorReport]:
        """The tensor's bytes in its output dtype, and what to say of it.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf, or the result does
        """
        started = time.monotonic()
        facts: dict[str, Any] = {"action": tensor.action, "method": tensor.method}
        notes: list[str] = []
        try:
            results = self._results(tensor, facts)
        except NonFiniteError as error:
            if not self._settings.allow_nonfinite or (tensor.base is None and tensor.adapter is None):
                raise
            results = self._unmerged(tensor)
            facts = {"action": "copy", "method": None}
            notes.append(f"kept the base: {error}")
        notes += facts.pop("notes", [])
        check = facts["action"] != "copy"
        entries = zip(results, output_entries(tensor), strict=True)
        pieces = [_bytes_of(_cast(result, tensor, entry.shape, check)) for result, entry in entries]
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        return data, TensorReport(
            name=tensor.name,
            seconds=time.monotonic() - started,
            sha256=hash_bytes(data),
            notes=tuple(notes),
            **facts,
        )

    @torch.no_grad()
    def largest_values(self, tensor: TensorPlan) -> tuple[dict[str, float], Origin]:
        """The largest value of each of the tensor's spectra, which are in the store afterwards if the recipe keeps any.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf, and `allow_nonfinite` is false; with it the tensor takes no part
        """
        assert tensor.method is not None
        method = get_planned_method(tensor.method, tensor.method_package)
        assert isinstance(method, SpectralMethod)
        parameters = method.Parameters.model_validate(dict(tensor.parameters))
        found: dict[str, float] = {}
        origins: set[Origin] = set()
        for view in tensor.views or (None,):
            key = tensor.spectrum_key if view is None else view.spectrum_key
            assert key is not None
            decompose = partial(self._decompose, method, parameters, self._stream(tensor, view))
            try:
                values, origin = self._spectra.values(key, decompose, self._provenance(method, tensor, view))
            except NonFiniteError:
                if not self._settings.allow_nonfinite or tensor.base is None:
                    raise
                values, origin = torch.zeros(0), "none"
            found[key] = float(values[0]) if len(values) else 0.0
            origins.add(origin)
        return found, "computed" if "computed" in origins else "reused"

    def _decompose(self, method: SpectralMethod[Any, Any], parameters: Any, stream: ExpertStream) -> Spectrum:
        return method.decompose(self._first_pass(stream), parameters)

    def _results(self, tensor: TensorPlan, facts: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """What is stored of the tensor, in the order of `output_entries`."""
        if tensor.adapter is None or tensor.adapter.full is not None:
            return (self._compute(tensor, facts),)
        stream = self._stream(tensor)
        if tensor.action == "mean":
            scale = tensor.parameters.get("scale", 1.0)
            assert isinstance(scale, (int, float))
            delta = mean_factors(stream, scale)
        else:
            assert tensor.method is not None and tensor.spectrum_key is not None, "the planner keys every decomposition"
            method = get_planned_method(tensor.method, tensor.method_package)
            assert isinstance(method, SpectralMethod), "the planner refuses what gives no low-rank delta"
            parameters = method.Parameters.model_validate(dict(tensor.parameters))
            delta = LowRank(*low_rank_form(*self._filtered(method, parameters, tensor.spectrum_key, stream, facts)))
        stored = stored_factors(delta, tensor.adapter)
        facts["truncation_error"] = stored.truncation_error
        return stored.down, stored.up

    def _unmerged(self, tensor: TensorPlan) -> tuple[torch.Tensor, ...]:
        """What stands where nothing can be merged: the base; in an adapter factors of zero."""
        if tensor.base is None:
            assert tensor.adapter is not None
            rows, columns = tensor.shape
            stored = nothing((rows, columns), tensor.adapter, self._dtype)
            return stored.down, stored.up
        base = self._reader.read(tensor.base)
        if tensor.base_rows is None:
            return (base,)
        return (place_rows(base, tensor.base_rows, base.new_zeros(tensor.shape)),)

    def _compute(self, tensor: TensorPlan, facts: dict[str, Any]) -> torch.Tensor:
        if tensor.action == "copy":
            assert tensor.base is not None, "the planner copies only what is there"
            return self._reader.read(tensor.base)
        if tensor.action == "mean":
            return self._add_mean(self._stream(tensor), tensor)
        assert tensor.method is not None, "the planner names a method for what is merged"
        method = get_planned_method(tensor.method, tensor.method_package)
        parameters = method.Parameters.model_validate(dict(tensor.parameters))
        if isinstance(method, DirectMethod):
            experts = [method.Expert.model_validate(dict(expert.parameters)) for expert in tensor.experts]
            return method.merge(self._stream(tensor), parameters, experts)
        if not tensor.views:
            assert tensor.spectrum_key is not None, "the planner keys every decomposition"
            merged = self._spectral(method, parameters, tensor, tensor.spectrum_key, None, facts)
            return merged.reshape(tensor.shape)
        assert tensor.matrix_shape is not None or len(tensor.shape) == 2, "views are cut from a matrix"
        pieces = [self._spectral(method, parameters, tensor, view.spectrum_key, view, facts) for view in tensor.views]
        return torch.cat(pieces, dim=tensor.views[0].axis).reshape(tensor.shape)

    def _stream(self, tensor: TensorPlan, view: MatrixView | None = None) -> ExpertStream:
        return ExpertStream(tensor, self._reader, self._dtype, self._device, self._settings.seed, view)

    def _spectral(
        self,
        method: SpectralMethod[Any, Any],
        parameters: Any,
        tensor: TensorPlan,
        key: str,
        view: MatrixView | None,
        facts: dict[str, Any],
    ) -> torch.Tensor:
        stream = self._stream(tensor, view)
        delta = apply_factors(*self._filtered(method, parameters, key, stream, facts))
        return delta if stream.base is None else delta.add_(stream.base)

    def _filtered(
        self, method: SpectralMethod[Any, Any], parameters: Any, key: str, stream: ExpertStream, facts: dict[str, Any]
    ) -> tuple[Spectrum, Factors]:
        """One matrix' spectrum and the factors that make the merged delta of it, calibrated if the recipe says so."""
        tensor, view = stream.tensor, stream.view
        parameters = self._aligned(parameters, tensor, key)
        values: list[torch.Tensor] = []

        def factors_of(spectrum: Spectrum) -> Factors:
            values[:] = [spectrum.values]
            return method.factors(spectrum, parameters)

        provenance = self._provenance(method, tensor, view)
        decompose = partial(self._decompose, method, parameters, stream)
        spectrum, factors, origin = self._spectra.factored(key, decompose, factors_of, provenance)
        _add_facts(facts, factors.rank, _energy(values[0], factors.rank), origin, key)
        if "svc" in tensor.calibration:
            calibration_key = tensor.calibration_key if view is None else view.calibration_key
            assert calibration_key is not None, "the planner keys every calibration"
            return self._calibrated(method, tensor, calibration_key, stream, spectrum, factors, facts)
        return spectrum, factors

    def _aligned(self, parameters: Any, tensor: TensorPlan, key: str) -> Any:
        """The parameters with this layer's own filter time, where it depends on the other layers."""
        if tensor.alignment_key is None:
            return parameters
        time = self._aligned_exp_times.exp_time(
            tensor.alignment_key, key, parameters.exp_time, parameters.alignment_rho
        )
        return parameters.model_copy(update={"exp_time": time})

    def _calibrated(
        self,
        method: SpectralMethod[Any, Any],
        tensor: TensorPlan,
        key: str,
        stream: ExpertStream,
        spectrum: Spectrum,
        factors: Factors,
        facts: dict[str, Any],
    ) -> tuple[Spectrum, Factors]:
        """SVC on what the method made; its spectrum is kept too: another alpha needs no expert."""
        svc = tensor.calibration["svc"]
        assert isinstance(svc, Mapping)
        alpha = svc.get("alpha")
        alpha = default_alpha(method.name, stream.num_experts) if alpha is None else float(alpha)
        found, calibrated, _ = self._spectra.factored(
            key,
            lambda: svc_of_filtered(spectrum, factors, self._second_pass(stream)),
            lambda one: svc_factors(one, alpha),
            {"tensor": tensor.name, "part": stream.view.label if stream.view else None, "after": method.name},
        )
        warning = flat_spectrum_warning(found)
        if warning is not None and calibration_warning(method.name) is None:  # of those methods the plan says it once
            facts.setdefault("notes", []).append(warning)
        return found, calibrated

    def _first_pass(self, stream: ExpertStream) -> TaskVectors:
        key = _sums_key(stream)
        return stream if key is None else self._sums.task_vectors(stream, key, stream.tensor.members)

    def _second_pass(self, stream: ExpertStream) -> TaskVectors:
        key = _sums_key(stream)
        return stream if key is None else self._sums.second_pass(stream, key, stream.tensor.members)

    def _add_mean(self, stream: ExpertStream, tensor: TensorPlan) -> torch.Tensor:
        """base + scale * mean of the weighted deltas, for any shape."""
        if tensor.sums_key is None:
            total = weighted_sum_of(stream)
        else:
            total = self._sums.weighted_sum(stream, tensor.sums_key, tensor.members)
        scale = tensor.parameters.get("scale", 1.0)
        assert isinstance(scale, (int, float))
        mean = total.mul_(scale / stream.num_experts)
        return mean if stream.base is None else stream.base + mean

    def _provenance(
        self, method: SpectralMethod[Any, Any], tensor: TensorPlan, view: MatrixView | None
    ) -> dict[str, object]:
        return {
            "tensor": tensor.name,
            "part": view.label if view else None,
            "method": method.name,
            "algorithm_version": method.algorithm_version,
            "arithmetic": self._settings.arithmetic,
            "weights": [expert.parameters.get("weight", 1.0) for expert in tensor.experts],
        }


def _energy(values: torch.Tensor, rank: int) -> float:
    """Share of the values' sum in the first `rank` directions."""
    total = float(values.sum())
    return float(values[:rank].sum()) / total if total > 0 else 0.0


def _add_facts(facts: dict[str, Any], rank: int, energy: float, origin: Origin, key: str) -> None:
    """Of several matrices in one tensor: the ranks added up, the smallest energy, "computed" if any was."""
    facts["rank"] = facts.get("rank", 0) + rank
    facts["energy"] = min(facts.get("energy", 1.0), energy)
    facts["spectrum"] = "computed" if "computed" in (origin, facts.get("spectrum")) else origin
    facts.setdefault("spectrum_key", key)


def _sums_key(stream: ExpertStream) -> str | None:
    return stream.tensor.sums_key if stream.view is None else stream.view.sums_key


def _cast(result: torch.Tensor, tensor: TensorPlan, shape: tuple[int, ...], check: bool) -> torch.Tensor:
    """The one cast.

    Raises
    ------
    NonFiniteError : a merged value does not fit the output dtype
    """
    assert tuple(result.shape) == shape, (tensor.name, result.shape, shape)
    merged = result.to(torch_dtype(tensor.out_dtype))
    if check and merged.numel() and merged.is_floating_point() and not bool(torch.isfinite(merged.float().sum())):
        bad = int(merged.numel() - torch.isfinite(merged).sum())
        if bad:
            largest = float(result.abs().max())
            raise NonFiniteError(
                f"merged tensor {tensor.name!r} has {bad} values that do not fit {tensor.out_dtype}"
                f" (largest {largest:.3g}); set out_dtype to float32 or bfloat16, or lower the scale"
            )
    return merged


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
