"""One output tensor: read, merge, cast once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import NonFiniteError
from ..numerics.calibration import ALGORITHM_VERSION, default_alpha, svc_factors, svc_of_filtered
from ..numerics.method import DirectMethod, SpectralMethod
from ..numerics.registry import get_method
from ..numerics.spectrum import Factors, Spectrum, apply_factors
from ..numerics.task_vectors import TaskVectors
from ..planning.fingerprints import digest
from ..planning.plan import MatrixView, RunSettings, TensorPlan
from ..storage.store import Store
from ..storage.tensors import TensorReader, torch_dtype
from .operators import KeptSums, weighted_sum_of
from .reports import Origin, TensorReport
from .spectrum_cache import SpectrumCache
from .stream import ExpertStream


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
        self._sums = KeptSums(store, self._device, self._dtype)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32

    @property
    def notes(self) -> list[str]:
        return self._spectra.notes + self._sums.notes

    @property
    def kept_bytes_read(self) -> int:
        """Bytes of kept sums that the store gave instead of experts."""
        return self._sums.bytes_read

    @torch.inference_mode()
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
            result = self._compute(tensor, facts)
        except NonFiniteError as error:
            if not self._settings.allow_nonfinite or tensor.base is None:
                raise
            result = self._reader.read(tensor.base)
            facts = {"action": "copy", "method": None}
            notes.append(f"kept the base: {error}")
        data = _bytes_of(_cast(result, tensor, facts["action"] != "copy"))
        return data, TensorReport(
            name=tensor.name,
            seconds=time.monotonic() - started,
            sha256=hashlib.sha256(data).hexdigest(),
            notes=tuple(notes),
            **facts,
        )

    def _compute(self, tensor: TensorPlan, facts: dict[str, Any]) -> torch.Tensor:
        if tensor.action == "copy":
            assert tensor.base is not None, "the planner copies only what is there"
            return self._reader.read(tensor.base)
        if tensor.action == "mean":
            return self._add_mean(self._stream(tensor), tensor)
        assert tensor.method is not None, "the planner names a method for what is merged"
        method = get_method(tensor.method)
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
        values: list[torch.Tensor] = []

        def factors_of(spectrum: Spectrum) -> Factors:
            values[:] = [spectrum.values]
            return method.factors(spectrum, parameters)

        provenance = self._provenance(method, tensor, view)
        spectrum, factors, origin = self._spectra.factored(
            key, lambda: method.decompose(self._first_pass(stream), parameters), factors_of, provenance
        )
        _add_facts(facts, factors.rank, _energy(values[0], factors.rank), origin, key)
        if "svc" in tensor.calibration:
            spectrum, factors = self._calibrated(method, parameters, tensor, key, stream, spectrum, factors)
        delta = apply_factors(spectrum, factors)
        return delta if stream.base is None else delta.add_(stream.base)

    def _calibrated(
        self,
        method: SpectralMethod[Any, Any],
        parameters: Any,
        tensor: TensorPlan,
        key: str,
        stream: ExpertStream,
        spectrum: Spectrum,
        factors: Factors,
    ) -> tuple[Spectrum, Factors]:
        """SVC on what the method made; its spectrum is kept too: another alpha needs no expert."""
        svc = tensor.calibration["svc"]
        assert isinstance(svc, Mapping)
        alpha = svc.get("alpha")
        alpha = default_alpha(method.name, stream.num_experts) if alpha is None else float(alpha)
        made_by = [key, method.name, parameters.model_dump(mode="json"), ALGORITHM_VERSION]
        found, calibrated, _ = self._spectra.factored(
            f"spectra/{digest(['svc', *made_by])}.arrow",
            lambda: svc_of_filtered(spectrum, factors, self._second_pass(stream)),
            lambda one: svc_factors(one, alpha),
            {"tensor": tensor.name, "kind": "svc", "of": key},
        )
        return found, calibrated

    def _first_pass(self, stream: ExpertStream) -> TaskVectors:
        key = _operators_key(stream)
        return stream if key is None else self._sums.task_vectors(stream, key, stream.tensor.members)

    def _second_pass(self, stream: ExpertStream) -> TaskVectors:
        key = _operators_key(stream)
        return stream if key is None else self._sums.second_pass(stream, key, stream.tensor.members)

    def _add_mean(self, stream: ExpertStream, tensor: TensorPlan) -> torch.Tensor:
        """base + scale * mean of the weighted deltas, for any shape."""
        if tensor.operators_key is None:
            total = weighted_sum_of(stream)
        else:
            total = self._sums.weighted_sum(stream, tensor.operators_key, tensor.members)
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


def _operators_key(stream: ExpertStream) -> str | None:
    return stream.tensor.operators_key if stream.view is None else stream.view.operators_key


def _cast(result: torch.Tensor, tensor: TensorPlan, check: bool) -> torch.Tensor:
    """The one cast.

    Raises
    ------
    NonFiniteError : a merged value does not fit the output dtype
    """
    assert tuple(result.shape) == tensor.shape, (tensor.name, result.shape, tensor.shape)
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
