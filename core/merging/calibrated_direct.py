"""SVC of what a direct method merges: the merged delta of the whole tensor, and its matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from ..numerics.method import DirectMethod
from ..numerics.registry import get_planned_method
from ..numerics.task_vectors import LowRank
from ..planning.outputs.adapter_output import rewrite_as_mean
from ..planning.outputs.calibrated_direct import calibrated_experts
from ..planning.plan import MatrixView, TensorPlan
from ..storage.checkpoints.tensor_reader import TensorReader
from .adapter_factors import mean_factors
from .expert_stream import ExpertStream


class DeltaToCalibrate(Protocol):
    """The merged delta of a direct method, which SVC decomposes."""

    def matrix(self, view: MatrixView | None) -> torch.Tensor | LowRank:
        """Return one matrix of the merged delta, (out, in); None for the whole tensor in its 2-D form."""
        ...


class FactoredDelta:
    """The merged delta of a weighted sum of adapters, as factors: its rank is at most the sum of theirs.

    Parameters
    ----------
    stream : the adapters' deltas of the whole tensor
    """

    def __init__(self, stream: ExpertStream) -> None:
        self._stream = stream

    def matrix(self, view: MatrixView | None) -> LowRank:
        assert view is None, "an adapter's weight is one matrix"
        mean = rewrite_as_mean(self._stream.tensor)
        scale = mean.parameters["scale"]
        assert isinstance(scale, (int, float))
        return mean_factors(replace(self._stream, tensor=mean), scale)


class MergedDelta:
    """The merged delta of one tensor, computed at the first use.

    It is computed in float64: base + delta - base would have the rounding of the base, which SVC takes for directions.

    Parameters
    ----------
    dtype : of the matrices that are returned, the arithmetic of the tensor
    """

    def __init__(
        self, tensor: TensorPlan, reader: TensorReader, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        self._tensor, self._dtype = tensor, dtype
        # as it is stored: direct methods merge whole tensors
        whole = replace(tensor, views=(), matrix_shape=None, in_out=False)
        self._stream = ExpertStream(whole, reader, torch.float64, device, seed)
        self._delta: torch.Tensor | None = None

    def matrix(self, view: MatrixView | None) -> torch.Tensor:
        """Return one matrix of the merged delta, (out, in); None for the whole tensor in its 2-D form.

        Raises
        ------
        NonFiniteError : an input holds NaN or Inf
        """
        tensor = self._tensor
        if self._delta is None:
            self._delta = self._merge()
        form = self._delta.reshape(tensor.matrix_shape or tensor.shape)
        if view is not None:
            matrix = form if view.index is None else form[view.index]
            entries = slice(view.start, view.stop, view.step)
            form = matrix[entries] if view.axis == 0 else matrix[:, entries]
        return (form.T if tensor.in_out else form).contiguous()

    def _merge(self) -> torch.Tensor:
        stream = self._stream
        assert self._tensor.method is not None and stream.base is not None, "the planner calibrates with a base only"
        method = get_planned_method(self._tensor.method, self._tensor.method_package)
        assert isinstance(method, DirectMethod)
        parameters = method.Parameters.model_validate(dict(self._tensor.parameters))
        experts = [method.Expert.model_validate(dict(expert.parameters)) for expert in self._tensor.experts]
        return (method.merge(stream, parameters, experts) - stream.base).to(self._dtype)


def without_weights(stream: ExpertStream) -> ExpertStream:
    """Return a stream of the experts that SVC counts, with task vectors that no weight multiplies."""
    return replace(stream, tensor=replace(stream.tensor, experts=calibrated_experts(stream.tensor.experts)))
