"""The normal equations of OptMerge: linear in theta as those of WUDI, so spectrum and filters are the same.

    minimize sum_i w_i ||(theta - tau_i) B_i^T||_F^2,   B_i = S_K V_K^T of v_i
    C = sum_i w_i V_K S_K^2 V_K^T,   D = sum_i w_i tau_i V_K S_K^2 V_K^T

tau_i is the rank-K SVD of v_i - mean, plus the mean ("full"), or the rank-K SVD of v_i ("lora").

Shapes: M = out features (D1), K = in features (D2), N = experts.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..energies import frobenius_norm
from ..lazy_torch import torch
from ..linear_algebra import svd
from ..noise.combined import centered
from ..noise.shrinkage import shrink_singular_values
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import add_product, product
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors, noises_of
from .gram_route import spectrum_of_operator
from .joint_row_space import project_to_row_space
from .operator import InterferenceOperator

Variant = Literal["full", "lora"]


def truncation_rank(shape: tuple[int, int], num_experts: int) -> int:
    """Return K = min(D1, D2) // N, at least 1: the rank of tau_i and B_i."""
    return max(1, min(shape) // num_experts)


def optmerge_operator(task_vectors: TaskVectors, variant: Variant, rank: int) -> InterferenceOperator:
    """Return C, D and S of OptMerge.

    Cost: two passes over the experts; two SVDs per expert; 3 M K + K^2 elements besides an expert and its SVD.

    References
    ----------
    OptMerge, ICLR 2026, and its published code
    """
    total: torch.Tensor | None = None
    for task_vector in task_vectors:
        dense = _dense(task_vector)
        total = dense.clone() if total is None else total.add_(dense)
    assert total is not None, "task vectors contain at least one expert"
    mean = total / task_vectors.num_experts
    columns = total.shape[1]
    C, D = total.new_zeros((columns, columns)), torch.zeros_like(total)
    norms: list[float] = []
    noises = noises_of(task_vectors)
    for index, task_vector in enumerate(task_vectors):
        v, noise = _dense(task_vector), noises[index]
        norm = frobenius_norm(v)
        norms.append(norm)
        if norm == 0.0:
            continue
        left, sigma, right = _truncated_svd(v / norm, rank, None if noise is None else noise.times(1.0 / norm))
        weighted = right.T * sigma**2
        add_product(C, weighted, right)
        if variant == "lora":
            projected = left * (sigma**3 * norm)  # tau V_K S_K^2
        else:
            own_left, own_sigma, own_right = _truncated_svd(v - mean, rank, centered(noises, index))
            projected = product(own_left * own_sigma, product(own_right, weighted)) + product(mean, weighted)
        add_product(D, projected, right)
    return InterferenceOperator(C, D, total, torch.tensor(norms, dtype=torch.float64))


def optmerge_spectrum(task_vectors: TaskVectors, variant: Variant) -> Spectrum:
    """Return the spectrum of OptMerge's C, computed in the joint row space of the experts where that is smaller."""
    shape = task_vectors.shape
    rank = truncation_rank(shape, task_vectors.num_experts)
    one_expert = task_vectors.num_experts == 1  # nothing is truncated, and D = v C
    if sum(task_vectors.max_ranks) >= shape[1]:
        return spectrum_of_operator(
            optmerge_operator(task_vectors, variant, rank), kind="optmerge", one_expert_is_solution=one_expert
        )
    projected = project_to_row_space(task_vectors)
    small = spectrum_of_operator(
        optmerge_operator(projected, variant, rank), kind="optmerge", one_expert_is_solution=one_expert
    )
    return dataclasses.replace(
        small, shape=shape, right=product(small.right, projected.basis), info={**small.info, "route": "row_space"}
    )


def _dense(task_vector: torch.Tensor | LowRank) -> torch.Tensor:
    return task_vector.dense() if isinstance(task_vector, LowRank) else task_vector


def _truncated_svd(
    matrix: torch.Tensor, rank: int, noise: StorageNoise | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the first `rank` triplets, without those that are rounding of storage."""
    left, sigma, right = svd(matrix)
    floor = 0.0 if noise is None else noise.floor(sigma)
    if noise is not None and floor > 0:
        rank = min(rank, int((sigma > floor).sum()))
        if noise.shrinks:
            sigma = shrink_singular_values(sigma, noise.shape, noise.deviation)
    return left[:, :rank], sigma[:rank], right[:rank]
