"""Measure experts of elementwise methods: norms and cosines from the first entries of some blocks."""

from __future__ import annotations

import torch

from ...numerics.interference.expert_probes import Measures, num_probes, numbers
from ...planning.plan import TensorPlan
from .block_stream import Block

BLOCK = 1 << 16  # elements: a few blocks of 256 KiB fit the second-level cache of current processors
# The first 8192 entries of every eighth block are measured, one of 64: a few percent of the time of a merge.
_EVERY = 8
_ENTRIES = 8192


class SampledMeasures:
    """Sums over a sample of the entries. Interference needs whole matrices, so it is not measured."""

    def __init__(self, num_elements: int, num_experts: int) -> None:
        self._num_elements = num_elements
        self._sampled = 0
        self._products = torch.zeros((num_experts + 1, num_experts + 1), dtype=torch.float64)

    def sample(self, block: Block) -> torch.Tensor | None:
        """Return the first entries of the task vectors, (N, entries); None where the block is not sampled.

        Call it before the block is merged.
        """
        if block.start // BLOCK % _EVERY != 0:
            return None
        first = Block(block.stream, block.start, min(block.stop, block.start + _ENTRIES))
        return torch.stack(list(first.task_vectors()))

    def add(self, vectors: torch.Tensor, delta: torch.Tensor) -> None:
        """Add a sample of the task vectors, (N, entries), and of the merged delta, (entries,)."""
        rows = torch.cat([vectors, delta.unsqueeze(0)]).double()
        self._products += (rows @ rows.T).cpu()
        self._sampled += rows.shape[1]

    def measures(self) -> Measures:
        """Return the sums, scaled to all entries."""
        products = self._products * (self._num_elements / max(1, self._sampled))
        count = len(products) - 1
        upper = torch.triu_indices(count, count, 1)
        return Measures(
            delta=float(products[-1, -1]),
            squares=numbers(products.diagonal()[:-1]),
            before=(),
            after=(),
            along=numbers(products[-1, :-1]),
            inner=numbers(products[upper[0], upper[1]]),
        )


def can_sample(tensor: TensorPlan) -> bool:
    """Return whether a tensor is measured: a matrix or a stack that is merged, not the mean of small ones."""
    is_merged = tensor.action == "merge" and len(tensor.shape) >= 2 and tensor.base is not None
    return is_merged and num_probes(len(tensor.experts)) > 0


def sampled_entries(whole: torch.Tensor) -> torch.Tensor:
    """Return the entries of a whole tensor that are sampled of its blocks, (entries,)."""
    flat = whole.reshape(-1)
    return torch.cat([flat[start : start + _ENTRIES] for start in range(0, len(flat), _EVERY * BLOCK)])
