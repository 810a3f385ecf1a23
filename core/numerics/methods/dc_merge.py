"""DC-Merge: experts with smoothed singular values, merged by TIES in the space that their directions cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ..apply_filter import Factors
from ..elementwise.trimmed_consensus import trimmed_consensus
from ..lazy_torch import torch
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..products.matrix_product import product
from ..spectrum import Spectrum
from ..svd.compact_svd import CompactSVD, compact_svd, svd_elements, svd_flops
from ..svd.cover_space import CoverSpace, cover_space
from ..svd.delta_sum import noise_share, singular_noise
from ..svd.singular_directions import count_collected, directions_per_expert
from ..task_vectors import TaskVectors, noise_of


class DcMergeParameters(SpectralParameters):
    rank: int | None = Field(
        None, ge=1, description="directions of each expert, at most min(D1, D2)/N; none: min(D1, D2)/N, rounded down"
    )
    smoothing: Literal["none", "average", "linear"] = Field(
        "none", description="singular values of each expert: unchanged, all equal, or falling linearly; their sum stays"
    )
    smoothing_ratio: float = Field(
        5.0, ge=1.0, description="for linear: largest value / smallest value, at most that of the expert's own values"
    )
    density: float = Field(
        0.001, gt=0.0, le=1.0, description="share of the entries in the common space that each expert keeps"
    )
    structural_mask: bool = Field(
        True, description="leave out entries between the directions of one expert and those of another"
    )


class DcMerge(SpectralMethod[DcMergeParameters, ExpertParameters]):
    """U' (G o B) V'^T, G the TIES merge of M_i = U'^T U_i S_i V_i^T V', and B the structural mask.

    U_i S_i V_i^T are the r leading triplets of expert i with smoothed values S_i: unchanged; their mean ("average"); or
    falling linearly from q to 1, q = min(smoothing_ratio, s_1/s_r), with the same sum ("linear"). U' and V' are the
    polar factors of all U_i and of all V_i, the cover basis. Each M_i keeps its max(1, floor(density n^2)) largest
    entries; each entry of G is the mean of those kept that have the sign of their sum. B is 1 in the N blocks in which
    rows and columns belong to the directions of one expert.

    r and n are those of the published codes: r = floor(min(M, K)/N) and n = min(M, K) without `rank` (full
    fine-tuning), n = N r with it (LoRA). At least one direction is taken; the published code returns zero for more
    experts than min(M, K). An expert of lower rank has fewer than r directions, and linearly dependent ones are shared:
    the published code completes both with arbitrary vectors. One expert is not merged to itself but to its
    max(1, floor(density n^2)) leading triplets, as in the published code.

    References
    ----------
    DC-Merge: Improving Model Merging with Directional Consistency, arXiv:2603.06242; code:
    github.com/Tobeginwith/DC-Merge, vision_fft_merge/src/utils/DC_utils.py and vision_lora_merge/merging_functions.py
    """

    name = "dc_merge"
    summary = "Experts with smoothed singular values, merged by TIES in the space that their directions cover"
    source = "arXiv:2603.06242"
    Parameters = DcMergeParameters

    def decomposition(self, parameters: DcMergeParameters) -> Mapping[str, object]:
        used: dict[str, object] = {
            "kind": self.name,
            "rank": parameters.rank,
            "smoothing": parameters.smoothing,
            "density": parameters.density,
            "structural_mask": parameters.structural_mask,
        }
        return used | ({"smoothing_ratio": parameters.smoothing_ratio} if parameters.smoothing == "linear" else {})

    def decompose(self, task_vectors: TaskVectors, parameters: DcMergeParameters) -> Spectrum:
        """Decompose the merged delta. Cost: one pass, N SVDs, two polar factors of P = N r rows, SVDs of G."""
        shape, num_experts = task_vectors.shape, task_vectors.num_experts
        rank, size = _sizes(shape, num_experts, parameters.rank)
        experts: list[CompactSVD] = []
        info: Mapping[str, object] = {}
        for index, vector in enumerate(task_vectors):
            noise = noise_of(task_vectors, index)
            own = compact_svd(vector, max_directions=rank, noise=noise)
            info = max(info, singular_noise(noise, own), key=noise_share)
            experts.append(own)
        space = cover_space(experts, [_smoothed(expert.values, parameters) for expert in experts])
        del experts
        merged = trimmed_consensus(space.projections(), max(1, int(parameters.density * size**2)))
        facts = {"collected": space.left.shape[0], "full_rank": min(shape), **info}
        return _spectrum(space, merged, parameters.structural_mask, facts)

    def factors(self, spectrum: Spectrum, parameters: DcMergeParameters) -> Factors:
        return Factors({"left": parameters.scale * spectrum.values}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        num_kept = count_collected(shape, max_ranks)
        each = sum(svd_flops(shape, rank if all_low_rank else None) for rank in max_ranks)
        return each + 6.0 * num_kept**2 * sum(shape) + 30.0 * num_kept**3

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        num_kept = count_collected(shape, max_ranks)
        one_expert = svd_elements(shape, max(max_ranks) if all_low_rank else None)
        held = num_kept * sum(shape)
        # the histogram that finds the threshold has 1 << 19 elements
        return held + max(one_expert, 2 * held + 18 * num_kept**2 + (1 << 19)) + shape[0] * shape[1]


def _sizes(shape: tuple[int, int], num_experts: int, rank: int | None) -> tuple[int, int]:
    """Return r, the directions of each expert, and n, the number of directions that `density` refers to."""
    most = directions_per_expert(shape, num_experts)
    if rank is None:
        return most, min(shape)
    return min(rank, most), num_experts * min(rank, most)


def _smoothed(values: torch.Tensor, parameters: DcMergeParameters) -> torch.Tensor:
    """Return descending singular values after smoothing; their sum stays."""
    if parameters.smoothing == "none" or len(values) == 0:
        return values
    ratio = 1.0
    if parameters.smoothing == "linear":
        ratio = min(parameters.smoothing_ratio, float(values[0]) / float(values[-1]))
    shares = torch.linspace(ratio, 1.0, len(values), dtype=torch.float64, device=values.device)
    return (values.double().sum() / shares.sum() * shares).to(values.dtype)


def _spectrum(space: CoverSpace, merged: torch.Tensor, masked: bool, info: Mapping[str, object]) -> Spectrum:
    """Return the triplets of U' (G o B) V'^T, block by block; `statistics["expert"]` is the block of each."""
    shape = (space.left.shape[1], space.right.shape[1])
    blocks = space.blocks if masked else [slice(0, len(merged))]
    values: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    right: list[torch.Tensor] = []
    for block in blocks:
        own = compact_svd(merged[block, block], cut=0.0)
        values.append(own.values)
        left.append(product(own.left.to(space.left.dtype), space.left[block]))
        right.append(product(own.right.to(space.right.dtype), space.right[block]))
    all_values = torch.cat(values)
    order = all_values.argsort(descending=True, stable=True)
    owners = torch.cat([torch.full_like(found, float(index)) for index, found in enumerate(values)])
    return Spectrum(
        DcMerge.name,
        shape,
        len(space.values),
        all_values[order].to(space.left.dtype),
        torch.cat(right)[order],
        {"left": torch.cat(left)[order]},
        {"expert": owners[order].to(space.left.dtype)} if masked else {},
        info,
    )
