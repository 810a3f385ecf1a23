"""One output tensor: read, merge, cast once."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch

from ..errors import NonFiniteError
from ..numerics.method import DirectMethod, SpectralMethod
from ..numerics.registry import get_method
from ..planning.plan import RunSettings, TensorPlan
from ..storage.store import Store
from ..storage.tensors import TensorReader
from .reports import Origin, TensorReport
from .spectrum_cache import SpectrumCache
from .stream import ExpertStream
from .torch_types import torch_dtype


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
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32

    @property
    def notes(self) -> list[str]:
        return self._spectra.notes

    @torch.inference_mode()
    def merge(self, tensor: TensorPlan) -> tuple[torch.Tensor, TensorReport]:
        """The tensor in its output dtype, contiguous, on the CPU, and what to say of it.

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
        merged = self._cast(result, tensor, notes)
        data = merged.view(torch.uint8).reshape(-1).numpy().data if merged.numel() else b""
        return merged, TensorReport(
            name=tensor.name,
            seconds=time.monotonic() - started,
            sha256=hashlib.sha256(data).hexdigest(),
            notes=tuple(notes),
            **facts,
        )

    def _compute(self, tensor: TensorPlan, facts: dict[str, Any]) -> torch.Tensor:
        if tensor.action == "copy":
            assert tensor.base is not None
            return self._reader.read(tensor.base)
        stream = ExpertStream(tensor, self._reader.read, self._dtype, self._device, self._settings.seed)
        if tensor.action == "mean":
            return self._mean(stream, tensor)
        assert tensor.method is not None
        method = get_method(tensor.method)
        parameters = method.Parameters.model_validate(dict(tensor.parameters))
        if isinstance(method, DirectMethod):
            experts = [method.Expert.model_validate(dict(expert.parameters)) for expert in tensor.experts]
            return method.merge(stream, parameters, experts)
        return self._spectral(method, parameters, stream, tensor, facts)

    def _spectral(
        self,
        method: SpectralMethod[Any, Any],
        parameters: Any,
        stream: ExpertStream,
        tensor: TensorPlan,
        facts: dict[str, Any],
    ) -> torch.Tensor:
        raise NotImplementedError
