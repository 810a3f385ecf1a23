"""Task vectors without the directions that are the rounding of their storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..lazy_torch import torch
from ..products.matrix_product import product
from ..task_vectors import LowRank, TaskVectors, noise_of
from .compact_svd import compact_svd


@dataclass(frozen=True, slots=True)
class DenoisedTaskVectors:
    """The same experts; the dense ones with known noise keep only their singular values above it.

    For methods that work on products of the task vectors instead of their directions. Costs an SVD of such an expert in
    each iteration.
    """

    source: TaskVectors

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.shape

    @property
    def num_experts(self) -> int:
        return self.source.num_experts

    @property
    def max_ranks(self) -> Sequence[int]:
        return self.source.max_ranks

    @property
    def all_low_rank(self) -> bool:
        return self.source.all_low_rank

    def __iter__(self) -> Iterator[torch.Tensor | LowRank]:
        for index, vector in enumerate(self.source):
            noise = noise_of(self.source, index)
            if noise is None or noise.energy == 0.0:
                yield vector
                continue
            svd = compact_svd(vector, cut=0.0, noise=noise)
            yield product(svd.left.T * svd.values, svd.right)
