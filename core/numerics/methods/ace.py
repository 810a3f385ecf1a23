"""ACE-Merging: a closed form that weights each expert by the input covariance estimated from its task vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from ..apply_filter import Factors
from ..lazy_torch import torch
from ..linear_algebra import solve_on_right
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..spectrum import Spectrum
from ..svd.compact_svd import compact_svd, gram, stays_low_rank, svd_elements, svd_flops, task_vector_norm
from ..svd.delta_sum import delta_spectrum
from ..svd.denoised import DenoisedTaskVectors
from ..task_vectors import LowRank, TaskVectors

_TINY = 1e-12  # as in the published code: added to traces and to the squared mean of their logarithms


class AceParameters(SpectralParameters):
    epsilon: float = Field(
        0.01,
        gt=0.0,
        description="ridge added to each covariance; divided by the trace where covariances are normalized",
    )
    heterogeneity_threshold: float = Field(
        0.3,
        ge=0.0,
        description="above this variance of the log traces (relative to their squared mean), covariances are normalized"
        " by their traces and the result is refined",
    )
    rank_fraction: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="share of the singular directions to which the refinement gives one common value",
    )


@dataclass(frozen=True, slots=True)
class _Setting:
    epsilon: float
    is_heterogeneous: bool
    mean_trace: float  # mean of tr(v_t^T v_t) over the non-zero experts
    num_tasks: int


class Ace(SpectralMethod[AceParameters, ExpertParameters]):
    """W = [sum_t X_t (S_t + e_t I)] [sum_t (S_t + e_t I) + 1 c]^(-1).

    X_t is v_t minus its mean row, S_t = X_t^T X_t, e_t = epsilon, and c the mean row of sum_t S_t. The tasks are
    heterogeneous if var(log tr_t) > heterogeneity_threshold * mean(log tr_t)^2, tr_t = ||v_t||_F^2. Then S_t and e_t
    are divided by tr(S_t) and c by the mean of tr_t, and the result is refined: with the residual
    D = sum_t v_t (S_t - mean_t(S_t + e_t I)) and W + D = U S V^T, mean(S_1 .. S_k) U_k V_k^T is added to W,
    k = int(rank_fraction min(M, K)).

    These are the formulas of the published code. They depend on the basis of both sides (mean rows) and on the scale of
    the experts (epsilon is absolute). A zero expert is left out here; in the published code its trace of 1e-12 makes
    the tasks heterogeneous and its ridge 1e10. For LoRA experts the push-through identity turns the inverse into a
    system whose size is the sum of the ranks; the result is exact.

    References
    ----------
    ACE-Merging: Data-Free Model Merging with Adaptive Covariance Estimation, arXiv:2603.02945 (CVPR 2026);
    code: github.com/unravel-xu/ACE-Merging, src/merge/strategy.py, ace_merging
    """

    name = "ace"
    summary = "Closed form that weights each expert by the covariance of its task vector (ACE-Merging)"
    source = "arXiv:2603.02945"
    Parameters = AceParameters

    def decomposition(self, parameters: AceParameters) -> Mapping[str, object]:
        return {"kind": self.name, **parameters.model_dump(exclude={"scale"})}

    def decompose(self, task_vectors: TaskVectors, parameters: AceParameters) -> Spectrum:
        """Decompose the merged delta. Cost: two passes, 4 N M K^2 + K^3 flops in float64 (dense), one or two SVDs.

        Where the rounding of storage is known, each pass also takes an SVD of each expert, to remove it.
        """
        task_vectors = DenoisedTaskVectors(task_vectors)
        shape, num_experts = task_vectors.shape, task_vectors.num_experts
        traces = [task_vector_norm(vector) ** 2 for vector in task_vectors]
        heterogeneity = _measure_heterogeneity([trace for trace in traces if trace > 0])
        is_heterogeneous = heterogeneity > parameters.heterogeneity_threshold
        info = {"heterogeneity": heterogeneity, "refined": is_heterogeneous}
        num_tasks = sum(trace > 0 for trace in traces)
        if num_tasks == 0:
            return delta_spectrum(self.name, next(iter(task_vectors)), num_experts, info)
        setting = _Setting(parameters.epsilon, is_heterogeneous, sum(traces) / num_tasks, num_tasks)
        if stays_low_rank(shape, task_vectors.max_ranks, task_vectors.all_low_rank):
            merged, fused = _merge_factors(task_vectors, setting)
        else:
            merged, fused = _merge_dense(task_vectors, setting)
        if fused is not None:
            num_flat = int(parameters.rank_fraction * min(shape))
            merged = _refine(merged, fused, num_flat)
        return delta_spectrum(self.name, merged, num_experts, info)

    def factors(self, spectrum: Spectrum, parameters: AceParameters) -> Factors:
        return Factors({"left": parameters.scale * spectrum.values}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        rows, columns = shape
        if stays_low_rank(shape, max_ranks, all_low_rank):
            stacked = sum(max_ranks)
            return 12.0 * sum(shape) * stacked**2 + 4.0 * stacked**3 + 3.0 * svd_flops(shape, stacked)
        solve = 0.7 * columns**3 + 2.0 * rows * columns**2
        return 6.0 * len(max_ranks) * rows * columns**2 + solve + 2.0 * svd_flops(shape)

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        rows, columns = shape
        if stays_low_rank(shape, max_ranks, all_low_rank):
            stacked = sum(max_ranks)
            return 10 * stacked * sum(shape) + svd_elements(shape, stacked) + rows * columns
        # float64: sum of the covariances, one covariance, the solver's copy; result, residual, sum and one expert
        return max(8 * columns**2 + 14 * rows * columns, 4 * rows * columns + svd_elements(shape))


def _measure_heterogeneity(traces: Sequence[float]) -> float:
    """Return var(log trace) / mean(log trace)^2 with the unbiased variance; 0 for a single expert."""
    if len(traces) < 2:
        return 0.0
    logarithms = [math.log(trace + _TINY) for trace in traces]
    mean = sum(logarithms) / len(logarithms)
    variance = sum((value - mean) ** 2 for value in logarithms) / (len(logarithms) - 1)
    return variance / (mean**2 + _TINY)


def _merge_dense(task_vectors: TaskVectors, setting: _Setting) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return W and, where the tasks are heterogeneous, W + D; (M, K), computed in float64."""
    covariances = weighted = summed = residual = None
    ridge = 0.0
    dtype = torch.float64
    for vector in task_vectors:
        given = vector.dense() if isinstance(vector, LowRank) else vector
        dtype = given.dtype
        full = given.double()
        if not bool(full.any()):
            continue
        centered = full - full.mean(dim=0)
        covariance = gram(centered.T)
        divisor = covariance.trace().item() + _TINY if setting.is_heterogeneous else 1.0
        covariance /= divisor
        own_ridge = setting.epsilon / divisor
        ridge += own_ridge
        term = torch.addmm(centered, centered, covariance, beta=own_ridge)
        weighted = term if weighted is None else weighted.add_(term)
        if setting.is_heterogeneous:
            summed = full.clone() if summed is None else summed.add_(full)  # clone: double() of float64 makes no copy
            term = full @ covariance
            residual = term if residual is None else residual.add_(term)
        covariances = covariance if covariances is None else covariances.add_(covariance)
    assert covariances is not None and weighted is not None
    mean_row = covariances.mean(dim=0)
    if setting.is_heterogeneous:
        mean_row /= setting.mean_trace + _TINY
    covariances.diagonal().add_(ridge)
    merged = solve_on_right(covariances + mean_row, weighted)
    if summed is None or residual is None:
        return merged.to(dtype), None
    fused = residual.addmm_(summed, covariances, alpha=-1.0 / setting.num_tasks).add_(merged)
    return merged.to(dtype), fused.to(dtype)


def _merge_factors(task_vectors: TaskVectors, setting: _Setting) -> tuple[LowRank, LowRank | None]:
    """Return the same as `_merge_dense` in factors: every term is (M, P) A with all A_t stacked to A (P, K)."""
    vectors = [vector for vector in task_vectors if isinstance(vector, LowRank) and vector.rank > 0]
    stacked = torch.cat([vector.right for vector in vectors]).double()  # A
    inner = gram(stacked)  # A A^T
    size, columns = stacked.shape
    covariance = torch.zeros((size, size), dtype=torch.float64, device=stacked.device)  # sum_t S_t = A^T G A
    weighted: list[torch.Tensor] = []
    residual: list[torch.Tensor] = []
    originals: list[torch.Tensor] = []
    ridge = 0.0
    start = 0
    for vector in vectors:
        span = slice(start, start + vector.rank)
        start += vector.rank
        left = vector.left.double()
        originals.append(left)
        centered = left - left.mean(dim=0)
        own = gram(centered.T)
        own_inner = inner[span, span]
        if task_vector_norm(vector) == 0.0:
            weighted.append(torch.zeros_like(left))
            residual.append(torch.zeros_like(left))
            continue
        divisor = (own * own_inner).sum().item() + _TINY if setting.is_heterogeneous else 1.0
        own /= divisor
        own_ridge = setting.epsilon / divisor
        ridge += own_ridge
        covariance[span, span] = own
        weighted.append(centered @ (own_inner @ own) + own_ridge * centered)
        residual.append(left @ (own_inner @ own))
    row_sums = stacked.sum(dim=1)  # A 1
    mean_row = (row_sums @ covariance) / columns  # c = mean_row A
    if setting.is_heterogeneous:
        mean_row /= setting.mean_trace + _TINY
    # push-through: (..) A (s I + A^T G A + 1 c)^(-1) = (..) (s I + A A^T G + A 1 mean_row)^(-1) A, with c = mean_row A
    system = inner @ covariance + torch.outer(row_sums, mean_row)
    system.diagonal().add_(ridge)
    merged = solve_on_right(system, torch.cat(weighted, dim=1))
    dtype = vectors[0].left.dtype
    result = LowRank(merged.to(dtype), stacked.to(dtype))
    if not setting.is_heterogeneous:
        return result, None
    summed = torch.cat(originals, dim=1)
    difference = torch.cat(residual, dim=1) - (summed @ (inner @ covariance) + ridge * summed) / setting.num_tasks
    return result, LowRank((difference + merged).to(dtype), stacked.to(dtype))


def _refine(merged: torch.Tensor | LowRank, fused: torch.Tensor | LowRank, num_flat: int) -> torch.Tensor | LowRank:
    """Return W + mean(S_1 .. S_k) U_k V_k^T of W + D; the mean does not include null directions."""
    svd = compact_svd(fused, max_directions=num_flat)
    if svd.num_directions == 0:
        return merged
    left = svd.left.T * svd.values.mean()
    if isinstance(merged, LowRank):
        return LowRank(torch.cat([merged.left, left], dim=1), torch.cat([merged.right, svd.right]))
    return merged.addmm_(left, svd.right)
