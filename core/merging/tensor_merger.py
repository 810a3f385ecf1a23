"""Merge one output tensor: read the base and the experts, apply the planned action, cast once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..cache.reports import Origin, TensorReport
from ..cache.spectra.kept_spectra import KeptSpectra
from ..cache.spectra.table_file import TableRow
from ..errors import NonFiniteError
from ..formats.digest import hash_bytes
from ..numerics.cast import count_nonfinite, round_once
from ..numerics.interference.expert_probes import Measures, rounded
from ..numerics.linear_algebra import overflow_refused
from ..numerics.method import DirectMethod
from ..numerics.registry import get_planned_method
from ..numerics.task_vectors import LowRank, to_dense, transpose
from ..planning.plan import MatrixView, RunSettings, TensorPlan
from ..planning.shards import OutputEntry, output_entries
from ..storage.checkpoints.tensor_reader import TensorReader
from ..storage.store import Store
from ..storage.torch_dtypes import torch_dtype
from .adapter_factors import mean_factors, stored_factors, zero_factors
from .blocks.block_merger import does_not_fit, merge_in_blocks
from .blocks.sampled_measures import can_sample
from .calibrated_direct import FactoredDelta, MergedDelta
from .expert_stream import ExpertStream
from .float8_output import quantize
from .kept_sums import KeptSums, weighted_sum_of
from .measured_experts import ProbedInputs, SampledInputs, can_measure
from .row_placement import place_rows
from .spectral_facts import SpectralFacts, combine_facts
from .spectral_merger import SpectralMerger

# From one matrix of a tensor to its merged delta.
_DeltaOf = Callable[[ExpertStream], tuple[torch.Tensor | LowRank, SpectralFacts]]


@dataclass(frozen=True, slots=True)
class _Merged:
    """The result of one tensor before the cast.

    tensors : what is stored, in the order of `output_entries`
    spectral : None where no spectrum was used
    measures : of the experts, where no spectrum was used
    """

    tensors: tuple[torch.Tensor, ...]
    spectral: SpectralFacts | None = None
    truncation_error: float | None = None
    error: float | None = None
    measures: Measures | None = None


@dataclass(frozen=True, slots=True)
class _Tools:
    """What merges in one arithmetic dtype."""

    dtype: torch.dtype
    sums: KeptSums
    spectral: SpectralMerger


class TensorMerger:
    """Merges the tensors of one shard, with one reader, one store, and one device.

    Parameters
    ----------
    measures : measure the experts for the report on a tensor; their probes are kept beside its spectra
    kept : spectra of the store in memory
    """

    def __init__(
        self,
        settings: RunSettings,
        store: Store,
        reader: TensorReader,
        *,
        measures: bool = False,
        kept: KeptSpectra | None = None,
    ) -> None:
        self._settings = settings
        self._measures, self._kept = measures, kept
        self._reader = reader
        self._device = torch.device(settings.device)
        self._store = store
        self._tools: dict[str, _Tools] = {}  # by arithmetic
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32

    @property
    def notes(self) -> list[str]:
        """Objects of the store that were damaged and have been computed again; they do not affect the result."""
        return [note for tools in self._tools.values() for note in tools.spectral.notes + tools.sums.notes]

    @property
    def spectra_rows(self) -> list[TableRow]:
        """Values and statistics of all spectra so far."""
        return [row for tools in self._tools.values() for row in tools.spectral.rows]

    @property
    def kept_bytes_read(self) -> int:
        """Bytes of kept sums that were read instead of experts."""
        return sum(tools.sums.bytes_read for tools in self._tools.values())

    def merge(self, tensor: TensorPlan) -> tuple[memoryview, TensorReport]:
        """Return the bytes of a tensor in its output dtype, and the report on it. Errors as `merge_to`."""
        data = bytearray()
        report = self.merge_to(tensor, data.extend)
        return memoryview(data), report

    @torch.no_grad()  # not inference_mode: threads that read ahead fill tensors outside of it
    def merge_to(self, tensor: TensorPlan, write: Callable[[memoryview], object]) -> TensorReport:
        """Write the bytes of a tensor in its output dtype, and return the report on it.

        Parameters
        ----------
        write : takes consecutive bytes, which are valid during the call

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf, or a merged value does not fit the output dtype; what was written
            until then is of no use
        """
        if not tensor.in_blocks:
            return self._merge_whole(tensor, write)
        started = time.monotonic()
        sha256 = hashlib.sha256()
        kept: list[bytes] = []  # written at the end where an error is no end: then the base is written

        def take(data: memoryview) -> None:
            if self._settings.allow_nonfinite:
                kept.append(bytes(data))
            else:
                sha256.update(data)
                write(data)

        try:
            measures = merge_in_blocks(
                tensor, self._reader, self._of(tensor).dtype, self._settings.seed, take, measures=self._measures
            )
        except NonFiniteError:
            if not self._settings.allow_nonfinite:
                raise
            return self._merge_whole(tensor, write)
        for data in kept:
            sha256.update(data)
            write(memoryview(data))
        seconds = time.monotonic() - started
        shortened = rounded(measures)
        return TensorReport(tensor.name, tensor.action, tensor.method, seconds, sha256.hexdigest(), measures=shortened)

    def _merge_whole(self, tensor: TensorPlan, write: Callable[[memoryview], object]) -> TensorReport:
        started = time.monotonic()
        action, method = tensor.action, tensor.method
        notes: tuple[str, ...] = ()
        try:
            with overflow_refused(f"tensor {tensor.name!r}"):
                merged = self._merge(tensor)
        except NonFiniteError as error:
            if not self._settings.allow_nonfinite or (tensor.base is None and tensor.adapter is None):
                raise
            merged = self._unchanged(tensor)
            action, method = "copy", None
            notes = (f"kept the base: {error}",)
        if tensor.float8 is not None:
            weight = quantize(merged.tensors[0], tensor.float8, tensor.name)
            merged = replace(merged, tensors=(weight.stored, weight.scale), error=weight.error)
        spectral = merged.spectral
        outputs = spectral.outputs if spectral else None
        measures = spectral.measures if spectral else merged.measures
        entries = zip(merged.tensors, output_entries(tensor), strict=True)
        pieces = [_bytes_of(_cast(result, entry, tensor.name, action != "copy")) for result, entry in entries]
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        write(data)
        return TensorReport(
            name=tensor.name,
            action=action,
            method=method,
            seconds=time.monotonic() - started,
            sha256=hash_bytes(data),
            rank=spectral.rank if spectral else None,
            energy=spectral.energy if spectral else None,
            spectrum=spectral.origin if spectral else "none",
            spectrum_key=spectral.spectrum_key if spectral else None,
            outputs_rank=outputs.rank if outputs else None,
            outputs_energy=outputs.energy if outputs else None,
            outputs_spectrum_key=outputs.spectrum_key if outputs else None,
            notes=notes + (spectral.notes if spectral else ()),
            truncation_error=merged.truncation_error,
            error=merged.error,
            storage_noise=spectral.noise if spectral else None,
            measures=rounded(measures),
            svc_change=spectral.svc_change if spectral else None,
        )

    @torch.no_grad()
    def largest_values(self, tensor: TensorPlan) -> tuple[dict[str, float], Origin]:
        """Return the largest value of each of the tensor's spectra by key, and "computed" if any was computed now.

        Raises
        ------
        as `SpectralMerger.largest_values`
        """
        spectral = self._of(tensor).spectral
        with overflow_refused(f"tensor {tensor.name!r}"):
            matrices = [spectral.largest_values(self._stream(tensor, view)) for view in tensor.views or (None,)]
        found = [one for decompositions in matrices for one in decompositions]
        origins = {origin for _, _, origin in found}
        return {key: value for key, value, _ in found}, "computed" if "computed" in origins else "reused"

    def _merge(self, tensor: TensorPlan) -> _Merged:
        if tensor.stores_factors:
            return self._merge_factors(tensor)
        if tensor.action == "copy":
            assert tensor.base is not None, "the planner copies only tensors of the base"
            return _Merged((self._reader.read(tensor.base),))
        if tensor.action == "mean":
            return _Merged((self._add_mean(tensor),))
        assert tensor.method is not None, "the planner sets a method for what is merged"
        method = get_planned_method(tensor.method, tensor.method_package)
        if isinstance(method, DirectMethod):
            if tensor.calibration:
                return self._merge_calibrated(tensor)
            parameters = method.Parameters.model_validate(dict(tensor.parameters))
            experts = [method.Expert.model_validate(dict(expert.parameters)) for expert in tensor.experts]
            return self._merge_directly(method, tensor, parameters, experts)
        return self._merge_matrices(tensor, self._of(tensor).spectral.merged_delta)

    def _merge_directly(
        self, method: DirectMethod[Any, Any], tensor: TensorPlan, parameters: Any, experts: Sequence[Any]
    ) -> _Merged:
        stream = self._stream(tensor)
        by_entries = method.elementwise or method.has_block_form
        measured = can_sample(tensor) if by_entries else can_measure(len(tensor.experts), tensor.shape)
        if not self._measures or tensor.base is None or not measured:
            return _Merged((method.merge(stream, parameters, experts),))
        inputs = SampledInputs(stream) if by_entries else ProbedInputs(stream)
        result = method.merge(inputs, parameters, experts)
        return _Merged((result,), measures=inputs.measure(result))

    def _merge_calibrated(self, tensor: TensorPlan) -> _Merged:
        """Return what a direct method merges, calibrated by SVC."""
        tools = self._of(tensor)
        delta = MergedDelta(tensor, self._reader, tools.dtype, self._device, self._settings.seed)
        return self._merge_matrices(tensor, lambda stream: tools.spectral.calibrated(stream, delta))

    def _merge_matrices(self, tensor: TensorPlan, delta_of: _DeltaOf) -> _Merged:
        """Return base + merged delta of all matrices of a tensor, joined to the tensor's shape."""
        if not tensor.views:
            result, one = _add_delta(self._stream(tensor), delta_of)
            result = result.T if tensor.in_out else result
            return _Merged((result.reshape(tensor.shape),), one)
        joined: torch.Tensor | None = None
        facts: list[SpectralFacts] = []
        for view in tensor.views:
            result, one = _add_delta(self._stream(tensor, view), delta_of)
            entries = slice(view.start, view.stop, view.step)
            joined = result.new_empty(tensor.matrix_shape or tensor.shape) if joined is None else joined
            matrix = joined if view.index is None else joined[view.index]
            (matrix[entries] if view.axis == 0 else matrix[:, entries]).copy_(result.T if tensor.in_out else result)
            facts.append(one)
        assert joined is not None
        return _Merged((joined.reshape(tensor.shape),), combine_facts(facts))

    def _merge_factors(self, tensor: TensorPlan) -> _Merged:
        """Return lora_A and lora_B of the merged delta."""
        assert tensor.adapter is not None
        stream = self._stream(tensor)
        facts: SpectralFacts | None = None
        if tensor.action == "mean":
            delta = mean_factors(stream, _scale(tensor))
        else:
            spectral = self._of(tensor).spectral
            assert tensor.method is not None, "the planner sets a method for what is merged"
            method = get_planned_method(tensor.method, tensor.method_package)
            if isinstance(method, DirectMethod):
                delta, facts = spectral.calibrated(stream, FactoredDelta(stream))
            else:
                delta, facts = spectral.merged_delta(stream)
            delta = transpose(delta) if tensor.in_out else delta
        stored = stored_factors(delta, tensor.adapter, torch_dtype(tensor.out_dtype))
        return _Merged((stored.down, stored.up), facts, stored.truncation_error, stored.error)

    def _unchanged(self, tensor: TensorPlan) -> _Merged:
        """Return what a tensor is where nothing can be merged: the base, or in an adapter factors of zero."""
        if tensor.base is None:
            assert tensor.adapter is not None
            rows, columns = tensor.shape
            stored = zero_factors((rows, columns), tensor.adapter, self._of(tensor).dtype)
            return _Merged((stored.down, stored.up))
        base = self._reader.read(tensor.base)
        if tensor.base_rows is not None:
            base = place_rows(base, tensor.base_rows, base.new_zeros(tensor.shape))
        return _Merged((base,))

    def _add_mean(self, tensor: TensorPlan) -> torch.Tensor:
        """Return base + scale * mean of the weighted deltas, for any shape."""
        stream = self._stream(tensor)
        if tensor.sums_key is None:
            total = weighted_sum_of(stream)
        else:
            total = self._of(tensor).sums.weighted_sum(stream, tensor.sums_key, tensor.members)
        mean = total.mul_(_scale(tensor) / stream.num_experts)
        return mean if stream.base is None else stream.base + mean

    def _of(self, tensor: TensorPlan) -> _Tools:
        """Return what merges in the arithmetic of a tensor."""
        arithmetic = tensor.arithmetic or self._settings.arithmetic
        if arithmetic not in self._tools:
            dtype = torch.float64 if arithmetic == "float64" else torch.float32
            settings = replace(self._settings, arithmetic=arithmetic)
            sums = KeptSums(self._store, self._device, dtype)
            spectral = SpectralMerger(
                settings, self._store, sums, self._device, dtype, measures=self._measures, kept=self._kept
            )
            self._tools[arithmetic] = _Tools(dtype, sums, spectral)
        return self._tools[arithmetic]

    def _stream(self, tensor: TensorPlan, view: MatrixView | None = None) -> ExpertStream:
        dtype = self._of(tensor).dtype
        return ExpertStream(tensor, self._reader, dtype, self._device, self._settings.seed, view)


def _add_delta(stream: ExpertStream, delta_of: _DeltaOf) -> tuple[torch.Tensor, SpectralFacts]:
    """Return base + merged delta of one matrix."""
    merged, facts = delta_of(stream)
    delta = to_dense(merged)
    del merged
    return delta if stream.base is None else delta.add_(stream.base), facts


def _scale(tensor: TensorPlan) -> float:
    scale = tensor.parameters.get("scale", 1.0)
    assert isinstance(scale, (int, float))
    return scale


def _cast(result: torch.Tensor, entry: OutputEntry, name: str, check: bool) -> torch.Tensor:
    """Return the result in the output dtype: the only cast of a merge.

    Raises
    ------
    NonFiniteError : a merged value does not fit the output dtype
    """
    assert tuple(result.shape) == entry.shape, (entry.name, result.shape, entry.shape)
    merged = round_once(result, torch_dtype(entry.dtype))
    bad = count_nonfinite(merged) if check and merged.is_floating_point() else 0
    if bad:
        raise does_not_fit(name, bad, float(result.abs().max()), entry.dtype)
    return merged


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
