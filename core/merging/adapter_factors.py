"""Convert the merged delta of one weight to the factors that a PEFT adapter stores, without forming the delta."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..numerics.cast import round_once
from ..numerics.linear_algebra import qr
from ..numerics.svd.compact_svd import CompactSVD, compact_svd
from ..numerics.task_vectors import LowRank
from ..planning.plan import AdapterFactors
from .expert_stream import ExpertStream


@dataclass(frozen=True, slots=True)
class StoredFactors:
    """The two factors of an adapter, as they are written.

    down : Tensor, (rank, K), lora_A; (rank, M) where the weight is stored (in, out)
    up : Tensor, (M, rank), lora_B; (K, rank)
    truncation_error : Frobenius norm of what the rank leaves out, relative to that of the merged delta; 0 if nothing
    error : the same of all that up @ down, as stored, differs from the merged delta: rank and rounding of the factors
    """

    down: torch.Tensor
    up: torch.Tensor
    truncation_error: float
    error: float


def stored_factors(delta: torch.Tensor | LowRank, adapter: AdapterFactors, dtype: torch.dtype) -> StoredFactors:
    """Return the best approximation of the adapter's rank, U S V^T, as lora_B = U sqrt(S) and lora_A = sqrt(S) V^T.

    The singular values descend, so the first rows and columns are an adapter of lower rank. A delta of lower rank is
    padded with zeros, because the plan fixes the shapes before any weight is read.

    Cost: two QR of the factors and one SVD of their rank, 10 (M + K) P^2 + 22 P^3 flops in float64; four times as much
    for the error, which is computed without forming the delta.

    Parameters
    ----------
    dtype : of the stored factors, whose rounding the error includes

    References
    ----------
    C. Eckart, G. Young, The approximation of one matrix by another of lower rank, Psychometrika 1 (1936)
    """
    svd = compact_svd(delta, cut=0.0)
    values = svd.values.double()
    kept = min(adapter.rank, svd.num_directions)
    total = float(values.square().sum())
    error = math.sqrt(float(values[kept:].square().sum()) / total) if kept < svd.num_directions else 0.0
    root = values[:kept].sqrt().to(svd.left.dtype).unsqueeze(1)
    left, right = _pad_rows(svd.left[:kept] * root, adapter.rank), _pad_rows(svd.right[:kept] * root, adapter.rank)
    left, right = round_once(left, dtype), round_once(right, dtype)
    rounded = _relative_error(svd, left, right, total)
    if adapter.transposed:  # delta = (up @ down)^T
        left, right = right, left
    return StoredFactors(right, left.T, error, rounded)


def _relative_error(svd: CompactSVD, left: torch.Tensor, right: torch.Tensor, total: float) -> float:
    """Return |U S V^T - left^T right|_F / |U S V^T|_F, by QR of the joined factors, in float64."""
    if total == 0:
        return 0.0
    outer = torch.cat([svd.left.double() * svd.values.double().unsqueeze(1), -left.double()]).T
    inner = torch.cat([svd.right.double(), right.double()]).T
    squares = (qr(outer)[1] @ qr(inner)[1].T).square().sum()
    return math.sqrt(float(squares) / total)


def mean_factors(stream: ExpertStream, scale: float) -> LowRank:
    """Return scale / N * sum of the weighted deltas, with the factors of all experts concatenated."""
    lefts: list[torch.Tensor] = []
    rights: list[torch.Tensor] = []
    for delta in stream:
        assert isinstance(delta, LowRank), "the planner writes factors only where all experts are LoRA"
        lefts.append(delta.left * (scale / stream.num_experts))
        rights.append(delta.right)
    return LowRank(torch.cat(lefts, dim=1), torch.cat(rights))


def zero_factors(shape: tuple[int, int], adapter: AdapterFactors, dtype: torch.dtype) -> StoredFactors:
    """Return the factors of a delta of zero."""
    empty = LowRank(torch.zeros((shape[0], 0), dtype=dtype), torch.zeros((0, shape[1]), dtype=dtype))
    return stored_factors(empty, adapter, dtype)


def _pad_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([rows, rows.new_zeros((count - rows.shape[0], rows.shape[1]))])
