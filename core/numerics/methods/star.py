"""STAR: the mean of the experts, each truncated to its leading singular directions and rescaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from ..apply_filter import Factors
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..spectrum import Spectrum
from ..svd.compact_svd import compact_svd, stays_low_rank, svd_elements, svd_flops
from ..svd.delta_sum import DeltaSum, delta_spectrum
from ..task_vectors import LowRank, TaskVectors, noise_of


class StarParameters(SpectralParameters):
    eta: float = Field(40.0, gt=0.0, le=100.0, description="percentage of each expert's nuclear norm that is kept")


class Star(SpectralMethod[StarParameters, ExpertParameters]):
    """mean_i of v_i truncated to rank r_i and rescaled to its original nuclear norm.

    With v_i = U S V^T, r_i is the smallest r with S_1 + .. + S_r >= eta/100 sum(S), and S_1 .. S_r are multiplied by
    sum(S) / (S_1 + .. + S_r).

    References
    ----------
    STAR: Spectral Truncation and Rescale for Model Merging, arXiv:2502.10339 (NAACL 2025); code: github.com/IBM/STAR,
    merger/STAR.py and merger/simple_avg.py
    """

    name = "star"
    summary = "Mean of the experts, each truncated to its leading directions and rescaled to its nuclear norm"
    source = "arXiv:2502.10339"
    Parameters = StarParameters

    def decomposition(self, parameters: StarParameters) -> Mapping[str, object]:
        return {"kind": self.name, "eta": parameters.eta}

    def decompose(self, task_vectors: TaskVectors, parameters: StarParameters) -> Spectrum:
        """Decompose the merged delta. Cost: one pass, N + 1 SVDs."""
        shape, num_experts = task_vectors.shape, task_vectors.num_experts
        total = DeltaSum(shape)
        ranks: list[int] = []
        for index, vector in enumerate(task_vectors):
            svd = compact_svd(vector, cut=0.0, noise=noise_of(task_vectors, index))
            kept = 0
            if svd.num_directions > 0:
                values = svd.values.double()
                reached = values.cumsum(0)
                kept = min(int((reached < parameters.eta / 100.0 * values.sum()).sum()) + 1, svd.num_directions)
                rescaled = values[:kept] * (values.sum() / reached[kept - 1])
                total.add(LowRank(svd.left[:kept].T * rescaled.to(svd.values.dtype), svd.right[:kept]), 1 / num_experts)
            else:
                total.add(vector, 0.0)
            ranks.append(kept)
        return delta_spectrum(self.name, total.total(), num_experts, {"expert_ranks": ranks})

    def factors(self, spectrum: Spectrum, parameters: StarParameters) -> Factors:
        return Factors({"left": parameters.scale * spectrum.values}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        each = sum(svd_flops(shape, rank if all_low_rank else None) for rank in max_ranks)
        if stays_low_rank(shape, max_ranks, all_low_rank):
            return each + svd_flops(shape, sum(max_ranks))
        return each + svd_flops(shape) + 2.0 * len(max_ranks) * min(shape) * shape[0] * shape[1]

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        if stays_low_rank(shape, max_ranks, all_low_rank):
            return svd_elements(shape, sum(max_ranks)) + shape[0] * shape[1]
        return 2 * shape[0] * shape[1] + svd_elements(shape)
