"""Sums of task vectors, kept as factors while factors are smaller than the matrix, and the spectrum of such a sum.

Shapes: M = out features, K = in features, P = rank of the stacked factors, R = number of directions, N = experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..lazy_torch import torch
from ..noise.combined import describe_noise, sum_of
from ..noise.storage_noise import StorageNoise
from ..products.matrix_product import add_product
from ..spectrum import Spectrum
from ..task_vectors import LowRank, TaskVectors, noises_of
from .compact_svd import CompactSVD, compact_svd, relative_cut, rms_singular_value


class DeltaSum:
    """A running sum of dense matrices and low-rank products of one shape.

    Low-rank terms are stacked, [L_1 L_2 ..] [R_1; R_2; ..], while the stack has fewer elements than the M x K matrix.
    Then, or after the first dense term, the sum is dense. It never needs more than 2 M K elements.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._stack: list[LowRank] = []
        self._dense: torch.Tensor | None = None

    def add(self, term: torch.Tensor | LowRank, factor: float = 1.0) -> None:
        """Add factor * term to the sum."""
        if not isinstance(term, LowRank):
            self._make_dense(term).add_(term, alpha=factor)
        elif self._dense is not None:
            add_product(self._dense, term.left, term.right, alpha=factor)
        else:
            self._stack.append(LowRank(term.left * factor, term.right))
            if sum(part.rank for part in self._stack) * sum(self._shape) >= self._shape[0] * self._shape[1]:
                self._make_dense(term.left)

    def total(self) -> torch.Tensor | LowRank:
        """Return the sum. Do not add terms afterwards.

        Returns
        -------
        Tensor (M, K), or LowRank where all terms are low-rank and their stack is smaller
        """
        if self._dense is not None:
            return self._dense
        assert self._stack, "nothing was added"
        return LowRank(
            torch.cat([part.left for part in self._stack], dim=1),
            torch.cat([part.right for part in self._stack], dim=0),
        )

    def _make_dense(self, like: torch.Tensor) -> torch.Tensor:
        if self._dense is None:
            dense = torch.zeros(self._shape, dtype=like.dtype, device=like.device)
            for part in self._stack:
                add_product(dense, part.left, part.right)
            self._stack.clear()
            self._dense = dense
        return self._dense


def sum_task_vectors(task_vectors: TaskVectors) -> tuple[torch.Tensor | LowRank, float, StorageNoise | None]:
    """Return sum_i v_i, and the level below which its directions are rounding of the arithmetic or of float32 data.

    Where experts cancel, the sum is their rounding, and a cut relative to the sum's largest value would keep it. The
    noise level is relative to the largest expert.

    Cost: one pass over the experts, one at a time; M K elements, or the stacked factors.

    Returns
    -------
    total : Tensor (M, K) or LowRank
    noise_level : float, absolute
    noise : of the sum, from the rounding of storage
    """
    total = DeltaSum(task_vectors.shape)
    largest = 0.0
    for vector in task_vectors:
        largest = max(largest, rms_singular_value(vector))
        total.add(vector)
    return total.total(), largest * relative_cut(task_vectors.shape), sum_of(noises_of(task_vectors))


def svd_spectrum(
    kind: str,
    svd: CompactSVD,
    num_experts: int,
    info: Mapping[str, object] | None = None,
    noise: StorageNoise | None = None,
) -> Spectrum:
    """Return singular triplets as a spectrum with the single block "left"; `noise` is stated in its `info`."""
    shape = (svd.left.shape[1], svd.right.shape[1])
    facts = {"rank": svd.rank, "full_rank": min(shape), **(info or {}), **singular_noise(noise, svd)}
    return Spectrum(kind, shape, num_experts, svd.values, svd.right, {"left": svd.left}, info=facts)


def singular_noise(noise: StorageNoise | None, svd: CompactSVD) -> dict[str, object]:
    """Return what `info` states about the noise of a matrix with this SVD."""
    if noise is None:
        return {}
    level = noise.level
    return describe_noise(noise, svd.noise_floor, level, level / float(svd.values[0]) if len(svd.values) else 1.0)


def noise_share(info: Mapping[str, object]) -> float:
    """Return the share of the noise that `singular_noise` states; 0 for none."""
    known = cast("Mapping[str, float]", info.get("storage_noise", {}))
    return known.get("share", 0.0)


def delta_spectrum(
    kind: str, delta: torch.Tensor | LowRank, num_experts: int, info: Mapping[str, object] | None = None
) -> Spectrum:
    """Return the spectrum of a merged delta: all singular triplets that the arithmetic resolves.

    With its values as factors it gives the delta again.
    """
    return svd_spectrum(kind, compact_svd(delta, cut=0.0), num_experts, info)
