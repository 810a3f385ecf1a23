"""CART: the mean of the experts plus low-rank parts of their differences from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from ..apply_filter import Factors
from ..lazy_torch import torch
from ..method import ExpertParameters, SpectralMethod, SpectralParameters
from ..noise.combined import centered
from ..products.matrix_product import add_product
from ..spectrum import Spectrum
from ..svd.compact_svd import (
    compact_svd,
    lift_svd,
    relative_cut,
    rms_singular_value,
    stays_low_rank,
    svd_elements,
    svd_flops,
)
from ..svd.core_coordinates import core_task_vectors
from ..svd.delta_sum import delta_spectrum, svd_spectrum
from ..task_vectors import LowRank, TaskVectors, noises_of


class CartParameters(SpectralParameters):
    rank_ratio: float = Field(
        0.08,
        gt=0.0,
        le=1.0,
        description="rank kept of each centered expert (expert minus mean), as a share of min(out, in) features",
    )
    coefficient: float = Field(1.0, description="factor (lambda) on the sum of the low-rank parts")


class Cart(SpectralMethod[CartParameters, ExpertParameters]):
    """m = mean_i v_i; result m + lambda sum_i SVD_r(v_i - m), r = max(1, int(rank_ratio min(M, K))).

    The centered experts v_i - m add up to zero. Where r is at least their rank, as for LoRA experts whose ranks add up
    to less than r, only the mean is left. For those use core_space with `merge: cart`; its ratio refers to the core.

    References
    ----------
    Revisiting Weight Averaging for Model Merging, arXiv:2412.12153 (CART); code: github.com/JH-GEECS/CART,
    src/merging.py
    """

    name = "cart"
    summary = "Mean of the experts plus low-rank parts of their differences from it"
    source = "arXiv:2412.12153"
    Parameters = CartParameters

    def decomposition(self, parameters: CartParameters) -> Mapping[str, object]:
        return {"kind": self.name, "rank_ratio": parameters.rank_ratio, "coefficient": parameters.coefficient}

    def decompose(self, task_vectors: TaskVectors, parameters: CartParameters) -> Spectrum:
        """Decompose the merged delta. Cost: two passes, N + 1 SVDs; of the small cores for LoRA experts."""
        shape, num_experts = task_vectors.shape, task_vectors.num_experts
        rank = max(1, int(parameters.rank_ratio * min(shape)))
        info = {"kept_rank": rank}
        if not stays_low_rank(shape, task_vectors.max_ranks, task_vectors.all_low_rank):
            return delta_spectrum(self.name, cart_delta(task_vectors, rank, parameters.coefficient), num_experts, info)
        cores = core_task_vectors(task_vectors)
        merged = cart_delta(cores, rank, parameters.coefficient)
        svd = lift_svd(compact_svd(merged, cut=0.0), cores.left, cores.right)
        return svd_spectrum(self.name, svd, num_experts, info)

    def factors(self, spectrum: Spectrum, parameters: CartParameters) -> Factors:
        return Factors({"left": parameters.scale * spectrum.values}, spectrum.num_directions)

    def flops(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> float:
        if stays_low_rank(shape, max_ranks, all_low_rank):
            stacked = sum(max_ranks)
            return 2.0 * svd_flops(shape, stacked) + (len(max_ranks) + 1) * svd_flops((stacked, stacked))
        return (len(max_ranks) + 1) * (svd_flops(shape) + 2.0 * shape[0] * shape[1])

    def peak_elements(self, shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> int:
        if stays_low_rank(shape, max_ranks, all_low_rank):
            stacked = sum(max_ranks)
            core = svd_elements((stacked, stacked)) + 4 * stacked**2
            return max(7 * stacked * sum(shape), 3 * stacked * sum(shape) + core) + shape[0] * shape[1]
        return 3 * shape[0] * shape[1] + svd_elements(shape)


def cart_delta(task_vectors: TaskVectors, rank: int, coefficient: float) -> torch.Tensor:
    """Return mean_i v_i + coefficient * sum_i SVD_rank(v_i - mean), (M, K)."""
    shape = task_vectors.shape
    mean: torch.Tensor | None = None
    for vector in task_vectors:
        if mean is None:
            like = vector.left if isinstance(vector, LowRank) else vector
            mean = torch.zeros(shape, dtype=like.dtype, device=like.device)
        _add_scaled(mean, vector, 1.0 / task_vectors.num_experts)
    assert mean is not None
    merged = mean.clone()
    noises = noises_of(task_vectors)
    for index, vector in enumerate(task_vectors):
        # Identical experts minus their mean are rounding noise, which the floor excludes.
        floor = relative_cut(shape) * rms_singular_value(vector)
        difference = _add_scaled(mean.neg(), vector, 1.0)
        svd = compact_svd(difference, cut=0.0, floor=floor, max_directions=rank, noise=centered(noises, index))
        add_product(merged, svd.left.T * svd.values, svd.right, alpha=coefficient)
    return merged


def _add_scaled(target: torch.Tensor, vector: torch.Tensor | LowRank, factor: float) -> torch.Tensor:
    if isinstance(vector, LowRank):
        return add_product(target, vector.left, vector.right, alpha=factor)
    return target.add_(vector, alpha=factor)
