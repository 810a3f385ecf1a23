"""LARV: a factor on the task vectors for each block of layers, from scores of the weights alone.

    e = r(W) / r(v)                            r: exp of the entropy of the squared singular values
    c = (||W v^T - v W^T|| + ||W^T v - v^T W||) / (2 ||W|| ||v||)        how far weight and task vector do not commute
    score = e sqrt(depth) / (1 + softplus(z))  depth = (block + 1) / blocks, z = (c - mean c) / deviation of c
    factor: one of three tiers by the terciles of the score, or 1 + 0.5 tanh(3 (score - 1))

e and c of a block are the means over its matrices and the experts. The methods of the benchmark multiply their result
by the factor of their task vectors, so the factor is applied to the result. The values of the tiers are ours: the
sources that could be read do not state those of the paper.

References
----------
LARV: Data-Free Layer-wise Adaptive Rescaling Veneer for Model Merging, arXiv:2602.09413
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

_BLOCK = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
ScalesOfScores = Callable[[Sequence[float]], list[float]]


def effective_rank(matrix: Tensor) -> float:
    """Return exp(H(p)), p the squared singular values over their sum; 0 for a zero matrix."""
    small = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    energies = torch.linalg.eigvalsh(small @ small.T).clamp_min(0.0)
    total = float(energies.sum())
    if total == 0.0:
        return 0.0
    shares = energies[energies > 0] / total
    return math.exp(-float((shares * shares.log()).sum()))


def conflict(weight: Tensor, vector: Tensor) -> float:
    """Return the mean of the relative norms of W v^T - v W^T and W^T v - v^T W."""
    size = float(weight.norm() * vector.norm())
    if size == 0.0:
        return 0.0
    outputs, inputs = weight @ vector.T, weight.T @ vector
    return float((outputs - outputs.T).norm() + (inputs - inputs.T).norm()) / (2.0 * size)


def continuous_scale(scores: Sequence[float]) -> list[float]:
    return [1.0 + 0.5 * math.tanh(3.0 * (score - 1.0)) for score in scores]


def tiered_scales(tiers: Sequence[float]) -> ScalesOfScores:
    """Return the rule that gives the lowest third of the scores the first tier, and the highest the last."""

    def scales(scores: Sequence[float]) -> list[float]:
        order = sorted(range(len(scores)), key=lambda index: scores[index])
        found = [0.0] * len(scores)
        for place, index in enumerate(order):
            found[index] = tiers[place * len(tiers) // len(order)]
        return found

    return scales


def block_scores(base: Mapping[str, Tensor], task_vectors: Callable[[str], Sequence[Tensor]]) -> dict[int, float]:
    """Return the score of each block of layers, by its number, in their order."""
    contrasts: dict[int, list[float]] = {}
    conflicts: dict[int, list[float]] = {}
    for name, weight in base.items():
        if (block := _block(name)) is None or weight.ndim != 2:
            continue
        rank = effective_rank(weight)
        for vector in task_vectors(name):
            own = effective_rank(vector)
            contrasts.setdefault(block, []).append(rank / own if own else 0.0)
            conflicts.setdefault(block, []).append(conflict(weight, vector))
    blocks = sorted(contrasts)
    means = torch.tensor([sum(conflicts[block]) / len(conflicts[block]) for block in blocks], dtype=torch.float64)
    standardized = (means - means.mean()) / (float(means.std(correction=0)) or 1.0)
    scores = {}
    for place, (block, value) in enumerate(zip(blocks, standardized.tolist(), strict=True)):
        contrast = sum(contrasts[block]) / len(contrasts[block])
        scores[block] = contrast * math.sqrt((place + 1) / len(blocks)) / (1.0 + math.log1p(math.exp(value)))
    return scores


def scales_of_tensors(names: Iterable[str], scores: Mapping[int, float], rule: ScalesOfScores) -> dict[str, float]:
    """Return the factor of every tensor that belongs to a block of layers."""
    scales = dict(zip(scores, rule(list(scores.values())), strict=True))
    return {name: scales[block] for name in names if (block := _block(name)) in scales}


def _block(name: str) -> int | None:
    match = _BLOCK.search(name)
    return None if match is None else int(match[1])
