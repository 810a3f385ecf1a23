"""OptMerge's normal equations: linear in theta like WUDI's, so the same spectrum and the same filters apply.

    minimise sum_i w_i ||(theta - tau_i) B_i^T||_F^2,   B_i = S_K V_K^T of v_i
    C = sum_i w_i V_K S_K^2 V_K^T,   D = sum_i w_i tau_i V_K S_K^2 V_K^T

tau_i is the rank-K SVD of v_i - mean, plus the mean ("full"), or the rank-K SVD of v_i ("lora").

Shapes: M = out features (D1), K = in features (D2), N = experts.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ..energies import frobenius_norm
from ..lazy_torch import torch
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors
from .gram_route import spectrum_of_operator
from .joint_row_space import project_to_row_space
from .operator import InterferenceOperator

Variant = Literal["full", "lora"]


def truncation_rank(shape: tuple[int, int], num_experts: int) -> int:
    """K = min(D1, D2) // N, at least 1."""
    return max(1, min(shape) // num_experts)


def optmerge_operator(task_vectors: TaskVectors, variant: Variant, rank: int) -> InterferenceOperator:
    """C, D and S of OptMerge.

    Cost: two SVDs an expert; two passes over the experts; 3 M K + K^2 elements beyond an expert and its SVD.

    References
    ----------
    OptMerge, ICLR 2026, and its published code
    """
    total: torch.Tensor | None = None
    for task_vector in task_vectors:
        dense = _dense(task_vector)
        total = dense.clone() if total is None else total.add_(dense)
    assert total is not None, "task vectors hold at least one expert"
    mean = total / task_vectors.num_experts
    columns = total.shape[1]
    C, D = total.new_zeros((columns, columns)), torch.zeros_like(total)
    norms: list[float] = []
    for task_vector in task_vectors:
        v = _dense(task_vector)
        norm = frobenius_norm(v)
        norms.append(norm)
        if norm == 0.0:
            continue
        U, sigma, Vh = _truncated_svd(v / norm, rank)
        weighted = Vh.T * sigma**2
        C.addmm_(weighted, Vh)
        if variant == "lora":
            projected = U * (sigma**3 * norm)  # tau V_K S_K^2
        else:
            left, middle, right = _truncated_svd(v - mean, rank)
            projected = (left * middle) @ (right @ weighted) + mean @ weighted
        D.addmm_(projected, Vh)
    return InterferenceOperator(C, D, total, torch.tensor(norms, dtype=torch.float64))


def optmerge_spectrum(task_vectors: TaskVectors, variant: Variant) -> Spectrum:
    """The spectrum of OptMerge's C, in the experts' joint row space where that is smaller."""
    shape = task_vectors.shape
    rank = truncation_rank(shape, task_vectors.num_experts)
    one_expert = task_vectors.num_experts == 1  # then nothing is truncated and D = v C
    if sum(task_vectors.max_ranks) >= shape[1]:
        operator = optmerge_operator(task_vectors, variant, rank)
        return spectrum_of_operator(operator, kind="optmerge", one_expert_is_solution=one_expert)
    projected = project_to_row_space(task_vectors)
    operator = optmerge_operator(projected, variant, rank)
    small = spectrum_of_operator(operator, kind="optmerge", one_expert_is_solution=one_expert)
    return dataclasses.replace(
        small, shape=shape, right=small.right @ projected.basis, info={**small.info, "route": "row_space"}
    )


def _dense(task_vector: torch.Tensor | LowRank) -> torch.Tensor:
    return task_vector.dense() if isinstance(task_vector, LowRank) else task_vector


def _truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], sigma[:rank], Vh[:rank]
