"""Iso-C: the sum of the task vectors with its singular values replaced by their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..apply_filter import Factors
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..spectrum import Spectrum
from ..svd.compact_svd import compact_svd, stays_low_rank, svd_elements, svd_flops
from ..svd.delta_sum import sum_task_vectors, svd_spectrum
from ..task_vectors import TaskVectors

KIND = "svd_of_sum"


def decompose_sum(task_vectors: TaskVectors) -> Spectrum:
    """Return the singular triplets of sum_i v_i that are not rounding; shared by the methods that filter the sum.

    Cost: one pass over the experts and one SVD (see `compact_svd`); factors stay factors.

    Returns
    -------
    Spectrum of kind "svd_of_sum": values sigma_k, right v_k, block "left" u_k; R = rank of the sum, 0 for a zero sum
    """
    total, noise_level, noise = sum_task_vectors(task_vectors)
    svd = compact_svd(total, floor=noise_level, noise=noise)
    return svd_spectrum(KIND, svd, task_vectors.num_experts, noise=noise)


def sum_flops(shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
    """Return the projected floating point operations of `decompose_sum`."""
    if stays_low_rank(shape, max_ranks, all_low_rank):
        return svd_flops(shape, sum(max_ranks))
    return svd_flops(shape) + len(max_ranks) * shape[0] * shape[1]


def sum_elements(shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
    """Return the projected peak elements of `decompose_sum` and of applying factors to its spectrum."""
    rows, columns = shape
    if stays_low_rank(shape, max_ranks, all_low_rank):
        return svd_elements(shape, sum(max_ranks)) + rows * columns
    small = min(shape)
    return max(svd_elements(shape) + rows * columns, 2 * rows * columns + 2 * small * (rows + columns))


class IsoC(SpectralMethod[SpectralParameters, ExpertParameters]):
    """M = sum_i v_i = U S V^T; result scale * mean(S) U V^T = scale * mean(S) M (M^T M)^(-1/2).

    Mean, U and V include the directions with non-zero singular values only. The published code includes the zeros of a
    rank-deficient M in the mean and fills U and V with null vectors, an arbitrary basis that the SVD returns. Here the
    nuclear norm of M is kept at any rank and the result is unique. For M of full rank both are the same.
    The authors search scale in 0.1 .. 3.0; 1.0 to 1.5 is typical.

    References
    ----------
    No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, arXiv:2502.04959;
    code: github.com/danielm1405/iso-merging, src/utils/iso.py
    """

    name = "iso_c"
    summary = "Sum of the task vectors with its singular values replaced by their mean (isotropic merging)"
    source = "arXiv:2502.04959"
    Parameters = SpectralParameters

    def decomposition(self, parameters: SpectralParameters) -> Mapping[str, object]:
        return {"kind": KIND}

    def decompose(self, task_vectors: TaskVectors, parameters: SpectralParameters) -> Spectrum:
        return decompose_sum(task_vectors)

    def factors(self, spectrum: Spectrum, parameters: SpectralParameters) -> Factors:
        if spectrum.num_directions == 0:
            return Factors({"left": spectrum.values}, 0)
        level = parameters.scale * spectrum.values.mean()
        return Factors({"left": level.expand_as(spectrum.values)}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        return sum_flops(shape, max_ranks, all_low_rank)

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        return sum_elements(shape, max_ranks, all_low_rank)
