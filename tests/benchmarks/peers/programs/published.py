"""SWUDI as its published code computes a layer: the experts stacked in one tensor, the Gram matrices of all at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def published_swudi(task_vectors: Sequence[torch.Tensor], exp_time: float, rank_ratio: float) -> torch.Tensor:
    """Return the merged delta, theta_0 (I - Q f Q^T) + D Q (f / lambda) Q^T with theta_0 = sum_i v_i.

    Cost: 4 N M K^2 + 8 M K^2 operations and an eigendecomposition of (K, K); 2 N M K + N K^2 numbers beyond the inputs.

    Parameters
    ----------
    task_vectors : N of Tensor, (M, K), float32

    Returns
    -------
    Tensor, (M, K), float32

    References
    ----------
    SWUDI, arXiv:2606.07289: exponential filter on the leading directions
    """
    stacked_NMK = torch.stack(list(task_vectors))
    columns = stacked_NMK.shape[2]
    weights = 1.0 / stacked_NMK.flatten(1).norm(dim=1).square().clamp(min=1e-12)
    grams_NKK = stacked_NMK.transpose(1, 2) @ stacked_NMK
    operator_KK = torch.einsum("n,njk->jk", weights, grams_NKK)
    products_NMK = stacked_NMK @ grams_NKK
    target_MK = torch.einsum("n,nmk->mk", weights, products_NMK)
    del grams_NKK, products_NMK
    values, vectors_KK = torch.linalg.eigh(operator_KK)  # ascending
    values = values.clamp(min=1e-8)
    factors = 1.0 - torch.exp(-exp_time * values)
    factors[: columns - max(1, int((columns * rank_ratio + 0.999) // 1))] = 0.0
    solved_MK = (target_MK @ vectors_KK * (factors / values)) @ vectors_KK.T
    anchor_MK = stacked_NMK.sum(dim=0)
    return anchor_MK - (anchor_MK @ vectors_KK * factors) @ vectors_KK.T + solved_MK
