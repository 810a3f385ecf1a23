"""Iso-CTS: common directions of the experts plus task-specific ones, all with one singular value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from ..apply_filter import Factors
from ..lazy_torch import torch
from ..method import ExpertParameters, SpectralMethod
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import product
from ..spectrum import Spectrum
from ..svd.compact_svd import (
    CompactSVD,
    compact_svd,
    relative_cut,
    rms_singular_value,
    stays_low_rank,
    svd_elements,
    svd_flops,
)
from ..svd.delta_sum import singular_noise, sum_task_vectors
from ..svd.singular_directions import CollectingParameters, DirectionSet, collected_elements, is_exactly_zero
from ..task_vectors import LowRank, TaskVectors, noise_of

# A residual below this fraction of its expert is rounding of float32 data, where all directions of the sum are common.
_MIN_RESIDUAL_CUT = 1e-4


class IsoCtsParameters(CollectingParameters):
    common_fraction: float = Field(
        0.8, ge=0.0, le=1.0, description="share of the directions taken from the sum; the others are task-specific"
    )


class IsoCts(SpectralMethod[IsoCtsParameters, ExpertParameters]):
    """The top k_c directions U_c of the sum M, and (k - k_c)/N triplets of (I - U_c U_c^T) v_i of each expert i.

    k = min(M, K), k_c = k - N round((k - int(c k))/N), c = common_fraction. The collected U and V are replaced by their
    polar factors, and every sigma by the mean of the collected ones. c = 1 is Iso-C.

    Of rank-deficient data only directions with non-zero values are collected and averaged. Where M has at most k_c
    directions, the part of an expert outside their span is rounding noise, unless experts cancel in M.

    References
    ----------
    No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, arXiv:2502.04959;
    code: github.com/danielm1405/iso-merging, src/utils/iso.py
    """

    name = "iso_cts"
    summary = "Iso-C with its weakest common directions replaced by task-specific ones"
    source = "arXiv:2502.04959"
    algorithm_version = 2
    Parameters = IsoCtsParameters

    def decomposition(self, parameters: IsoCtsParameters) -> Mapping[str, object]:
        return {
            "kind": self.name,
            "common_fraction": parameters.common_fraction,
            "zero_experts": parameters.zero_experts,
        }

    def decompose(self, task_vectors: TaskVectors, parameters: IsoCtsParameters) -> Spectrum:
        """Collect and orthonormalize directions. Cost: two passes, N + 1 SVDs, two polar factors of min(M, K) rows."""
        shape, num_experts = task_vectors.shape, task_vectors.num_experts
        num_common, per_expert = _split_directions(min(shape), num_experts, parameters.common_fraction)
        total, noise_level, noise = sum_task_vectors(task_vectors)
        common = compact_svd(total, floor=noise_level, max_directions=num_common, noise=noise)
        del total
        collected = DirectionSet()
        if per_expert > 0:
            residual_cut = _find_residual_cut(common, shape)
            for index, vector in enumerate(task_vectors):
                if parameters.zero_experts == "axes" and not isinstance(vector, LowRank) and is_exactly_zero(vector):
                    collected.add_axes(vector, per_expert, index)
                    continue
                floor = residual_cut * rms_singular_value(vector)
                residual = _remove_directions(vector, common.left)
                own = _residual_noise(noise_of(task_vectors, index), common, noise)
                collected.add(compact_svd(residual, floor=floor, max_directions=per_expert, noise=own), index)
        collected.add(common, -1)
        info = singular_noise(noise, common)
        return collected.orthonormal(self.name, shape, num_experts, keep_zero_values=True, info=info)

    def factors(self, spectrum: Spectrum, parameters: IsoCtsParameters) -> Factors:
        if spectrum.num_directions == 0:
            return Factors({"left": spectrum.values}, 0)
        level = parameters.scale * spectrum.values.mean()
        return Factors({"left": level.expand_as(spectrum.values)}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        small = min(shape)
        if stays_low_rank(shape, max_ranks, all_low_rank):
            stacked = sum(max_ranks)
            each = sum(svd_flops(shape, rank) + 4.0 * shape[0] * rank * stacked for rank in max_ranks)
            return svd_flops(shape, stacked) + each + 4.0 * stacked**2 * sum(shape) + 18.0 * stacked**3
        each = svd_flops(shape) + 4.0 * small * shape[0] * shape[1]
        return svd_flops(shape) + len(max_ranks) * each + 4.0 * small**2 * sum(shape) + 18.0 * small**3

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        rows, columns = shape
        small = min(shape)
        if stays_low_rank(shape, max_ranks, all_low_rank):
            stacked = sum(max_ranks)
            working = max(svd_elements(shape, stacked), collected_elements(shape, stacked))
            return working + 2 * stacked * (rows + columns) + rows * columns
        held = small * (rows + columns)
        one_expert = held + 2 * rows * columns + svd_elements(shape)
        return max(one_expert, collected_elements(shape, small), 2 * held + rows * columns)


def _split_directions(full_rank: int, num_experts: int, common_fraction: float) -> tuple[int, int]:
    """Return k_c and the number of task-specific directions per expert; rounds half to even, as the published code."""
    specific = round((full_rank - int(full_rank * common_fraction)) / num_experts)
    num_common = full_rank - num_experts * specific
    if num_common < 0:  # common_fraction near 0: rounded up, the experts would have more than k directions
        specific -= 1
        num_common += num_experts
    return num_common, specific


def _find_residual_cut(common: CompactSVD, shape: tuple[int, int]) -> float:
    """Return the cut for directions outside the common space, relative to the expert: below it they are rounding noise.

    Where all directions of the sum are common, the experts are in their span up to its error, the rounding of the data
    times sigma_1/sigma_R. Otherwise residuals are data, and the cut is `relative_cut`.
    """
    cut = relative_cut(shape)
    full_rank = min(shape)
    if 0 < common.rank <= common.num_directions < full_rank:
        return max(_MIN_RESIDUAL_CUT, cut * (common.values[0] / common.values[-1]).item())
    return cut


def _residual_noise(own: StorageNoise | None, common: CompactSVD, total: StorageNoise | None) -> StorageNoise | None:
    """Return the noise of an expert's part outside the common space.

    Where all directions of the sum are common, an expert is outside of them by its own noise, and by that of the sum,
    which turns the common directions away from it. Otherwise directions of the sum are left out, and this is data.
    """
    if total is None or common.noise_floor == 0.0 or common.rank > common.num_directions:
        return own
    return total.plus(own)


def _remove_directions(vector: torch.Tensor | LowRank, left: torch.Tensor) -> torch.Tensor | LowRank:
    """Return (I - U U^T) v; the columns of U are the rows of `left`."""
    if isinstance(vector, LowRank):
        return LowRank(vector.left - product(left.T, product(left, vector.left)), vector.right)
    return vector - product(left.T, product(left, vector))
