"""TSV-M: the leading singular triplets of each expert, orthonormalized across experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..apply_filter import Factors
from ..method import ExpertParameters, SpectralMethod
from ..spectrum import Spectrum
from ..svd.compact_svd import compact_svd, svd_elements, svd_flops
from ..svd.delta_sum import noise_share, singular_noise
from ..svd.singular_directions import (
    CollectingParameters,
    DirectionSet,
    collected_elements,
    count_collected,
    directions_per_expert,
    is_exactly_zero,
)
from ..task_vectors import LowRank, TaskVectors, noise_of


class TsvM(SpectralMethod[CollectingParameters, ExpertParameters]):
    """sum over the collected triplets of scale sigma_k u_k v_k^T, with U and V replaced by their polar factors.

    d = floor(min(M, K)/N) leading triplets are collected of each expert, at least 1 (the published code returns zero
    for more experts than min(M, K)). An expert of lower rank contributes fewer than d; the published code completes it
    with vectors of its null space, which have value zero but rotate the others, depending on the basis. Linearly
    dependent directions are shared instead of completed from a null space: N identical experts give their rank-d part
    once.

    References
    ----------
    Task Singular Vectors, arXiv:2412.00081, TSV-Merge; code: github.com/AntoAndGar/task_singular_vectors,
    TSVM_utils.compute_and_sum_svd_mem_reduction
    """

    name = "tsv_m"
    summary = "Leading singular triplets of each expert, orthonormalized across experts (TSV-Merge)"
    source = "arXiv:2412.00081"
    algorithm_version = 2
    aliases = ("tsvm",)
    Parameters = CollectingParameters

    def decomposition(self, parameters: CollectingParameters) -> Mapping[str, object]:
        return {"kind": self.name, "zero_experts": parameters.zero_experts}

    def decompose(self, task_vectors: TaskVectors, parameters: CollectingParameters) -> Spectrum:
        """Collect and orthonormalize the triplets. Cost: one pass, N SVDs, two polar factors of N d rows."""
        shape, num_experts = task_vectors.shape, task_vectors.num_experts
        per_expert = directions_per_expert(shape, num_experts)
        collected = DirectionSet()
        info: dict[str, object] = {}
        for index, vector in enumerate(task_vectors):
            if parameters.zero_experts == "axes" and not isinstance(vector, LowRank) and is_exactly_zero(vector):
                collected.add_axes(vector, per_expert, index)
            else:
                noise = noise_of(task_vectors, index)
                own = compact_svd(vector, max_directions=per_expert, noise=noise)
                info = max(info, singular_noise(noise, own), key=noise_share)
                collected.add(own, index)
        return collected.orthonormal(self.name, shape, num_experts, keep_zero_values=False, info=info)

    def factors(self, spectrum: Spectrum, parameters: CollectingParameters) -> Factors:
        return Factors({"left": parameters.scale * spectrum.values}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        num_kept = count_collected(shape, max_ranks)
        each = sum(svd_flops(shape, rank if all_low_rank else None) for rank in max_ranks)
        return each + 4.0 * num_kept**2 * sum(shape) + 18.0 * num_kept**3

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        num_kept = count_collected(shape, max_ranks)
        one_expert = svd_elements(shape, max(max_ranks) if all_low_rank else None)
        held = num_kept * sum(shape)
        return max(held + one_expert, collected_elements(shape, num_kept), held * 3 + shape[0] * shape[1])
