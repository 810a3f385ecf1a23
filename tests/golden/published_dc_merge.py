"""DC-Merge as its published codes compute it, for comparison.

References
----------
github.com/Tobeginwith/DC-Merge (arXiv:2603.06242): vision_fft_merge/src/utils/DC_utils.py, commit 04c345b;
vision_lora_merge/merging_functions.py, commit 1ff20c2
"""

from __future__ import annotations

import torch


def published_dc_merge(
    vectors: list[torch.Tensor],
    rank: int | None = None,
    smoothing: str = "none",
    rho: float = 5.0,
    density: float = 1e-3,
    masked: bool = True,
) -> torch.Tensor:
    """The steps of the published codes in float64: with `rank` those for LoRA, without those for full fine-tuning.

    The codes hold the collected vectors in matrices as wide as the weight. The columns that stay zero are completed by
    vectors orthogonal to all collected ones, in which every expert is zero; here they are left out.
    """
    count, full = len(vectors), min(vectors[0].shape)
    each = full // count if rank is None else rank
    covered = full if rank is None else count * each
    lefts, rights, truncated = [], [], []
    for vector in vectors:
        left, values, right = torch.linalg.svd(vector, full_matrices=False)
        left, values, right = left[:, :each], values[:each], right[:each]
        if smoothing != "none":
            ratio = min(rho, (values[0] / values[-1]).item()) if smoothing == "linear" else 1.0
            line = torch.linspace(ratio, 1.0, each, dtype=torch.float64)
            values = values.sum() * line / line.sum()
        lefts.append(left)
        rights.append(right)
        truncated.append(left @ torch.diag(values) @ right)
    basis_left, basis_right = (nearest_orthonormal(torch.cat(parts, dim=1)) for parts in (lefts, [r.T for r in rights]))
    trimmed = []
    for matrix in truncated:
        core = basis_left.T @ matrix @ basis_right
        kept = max(1, int(density * covered**2))
        threshold = core.abs().flatten().sort(descending=True).values[min(kept, core.numel()) - 1]
        trimmed.append(core * (core.abs() >= threshold))
    stack = torch.stack(trimmed)
    elected = stack.sum(0).sign()
    agrees = (stack.sign() == elected) & (elected != 0)
    merged = (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    if masked:
        merged = merged * torch.block_diag(*[torch.ones(each, each, dtype=torch.float64)] * count)
    return basis_left @ merged @ basis_right.T


def nearest_orthonormal(columns: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right
