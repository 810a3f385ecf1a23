"""Core Space: LoRA experts merged exactly in the small space that their factors span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ..apply_filter import Factors, apply_factors
from ..elementwise.sign_consensus import trim_elect_average
from ..lazy_torch import torch
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..spectrum import Spectrum
from ..svd.compact_svd import compact_svd, lift_svd, stays_low_rank, svd_elements, svd_flops
from ..svd.core_coordinates import CoreTaskVectors, core_task_vectors
from ..svd.delta_sum import svd_spectrum
from ..svd.singular_directions import CollectingParameters
from ..task_vectors import TaskVectors
from .cart import cart_delta
from .tsv_m import TsvM


class CoreSpaceParameters(SpectralParameters):
    merge: Literal["sum", "mean", "ties", "tsv_m", "cart"] = Field(
        "tsv_m", description="method for the core matrices: sum (task arithmetic), mean, ties, tsv_m or cart"
    )
    isotropize: bool = Field(False, description="replace all singular values of the merged core by their mean (Iso-C)")
    density: float = Field(
        0.2, gt=0.0, le=1.0, description="for ties: share of the entries of its core that each expert keeps"
    )
    rank_ratio: float = Field(
        0.04, gt=0.0, le=1.0, description="for cart: rank kept of each centered core, as a share of its size"
    )
    coefficient: float = Field(0.1, description="for cart: factor (lambda) on the sum of the low-rank parts")


class CoreSpace(SpectralMethod[CoreSpaceParameters, ExpertParameters]):
    """v_i = B_i A_i = L C_i R^T; result L merge(C_1 .. C_N) R^T.

    L and R are orthonormal bases of all B_i and of all A_i, so the cores C_i contain the experts exactly: sum and mean
    are those of the full space. Methods on singular vectors get matrices of size P x P (P: sum of the ranks) instead of
    M x K; TSV-M keeps P/N triplets of each core. For dense experts see `core_task_vectors`.

    References
    ----------
    Accurate and Efficient Low-Rank Model Merging in Core Space, arXiv:2509.17786 (NeurIPS 2025);
    code: github.com/apanariello4/core-space-merging, task_merger.MatrixPerLayerMerger with merge_space "core"
    """

    name = "core_space"
    summary = "LoRA experts merged in the small space that their factors span (sum, TIES, TSV-M, CART; Iso-C on top)"
    source = "arXiv:2509.17786"
    algorithm_version = 2
    Parameters = CoreSpaceParameters

    def decomposition(self, parameters: CoreSpaceParameters) -> Mapping[str, object]:
        used: dict[str, object] = {"kind": self.name, "merge": parameters.merge}
        if parameters.merge == "ties":
            used["density"] = parameters.density
        if parameters.merge == "cart":
            used |= {"rank_ratio": parameters.rank_ratio, "coefficient": parameters.coefficient}
        return used

    def decompose(self, task_vectors: TaskVectors, parameters: CoreSpaceParameters) -> Spectrum:
        """Decompose the merged delta. Cost for LoRA: 4 (M + K) P^2 for the bases, and the merge of P x P matrices."""
        cores = core_task_vectors(task_vectors)
        all_zero = 0 in cores.shape
        merged = cores.left.new_zeros(cores.shape) if all_zero else _merge_cores(cores, parameters)
        svd = lift_svd(compact_svd(merged, cut=0.0), cores.left, cores.right)
        return svd_spectrum(self.name, svd, task_vectors.num_experts, {"core_shape": list(cores.shape)})

    def factors(self, spectrum: Spectrum, parameters: CoreSpaceParameters) -> Factors:
        values = spectrum.values
        if parameters.isotropize and spectrum.num_directions > 0:
            values = values.mean().expand_as(values)
        return Factors({"left": parameters.scale * values}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        size = min(*shape, sum(max_ranks))
        cores = (len(max_ranks) + 2) * svd_flops((size, size))
        if stays_low_rank(shape, max_ranks, all_low_rank):
            return 2.0 * svd_flops(shape, sum(max_ranks)) + cores
        grams = 2.0 * len(max_ranks) * shape[0] * shape[1] * sum(shape) + 9.0 * (shape[0] ** 3 + shape[1] ** 3)
        return grams + 4.0 * len(max_ranks) * size * shape[0] * shape[1] + cores

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        stacked = sum(max_ranks)
        size = min(*shape, stacked)
        # bases, one core, two sets of collected directions, the SVD of a core or the histogram of TIES
        merging = size * sum(shape) + 20 * size**2 + max(svd_elements((size, size)), 1 << 19)
        if stays_low_rank(shape, max_ranks, all_low_rank):
            return max(7 * stacked * sum(shape), merging + 2 * stacked * sum(shape)) + shape[0] * shape[1]
        return (
            max(11 * max(shape) ** 2 + min(shape) * sum(shape), merging + size * sum(shape)) + 2 * shape[0] * shape[1]
        )


def _merge_cores(cores: CoreTaskVectors, parameters: CoreSpaceParameters) -> torch.Tensor:
    if parameters.merge == "ties":
        return trim_elect_average(cores, parameters.density)
    if parameters.merge == "tsv_m":
        method, settings = TsvM(), CollectingParameters(scale=1.0, zero_experts="nothing")
        spectrum = method.decompose(cores, settings)
        return apply_factors(spectrum, method.factors(spectrum, settings))
    if parameters.merge == "cart":
        rank = max(1, int(parameters.rank_ratio * min(cores.shape)))
        return cart_delta(cores, rank, parameters.coefficient)
    total = torch.zeros(cores.shape, dtype=cores.left.dtype, device=cores.left.device)
    for core in cores:
        total += core
    return total / cores.num_experts if parameters.merge == "mean" else total
