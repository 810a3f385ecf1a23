"""Measure experts of elementwise methods: norms and cosines from the first entries of every block."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...numerics.interference.expert_probes import Measures, num_probes, numbers
from ...planning.plan import TensorPlan
from .block_stream import Block

BLOCK = 1 << 16  # elements: a few blocks of 256 KiB fit the second-level cache of current processors
#: One of this many entries is measured: the cost is a few percent of that of the merge.
_ONE_OF = 16
_LEAST = 4096  # entries of a block


class SampledMeasures:
    """Sums over a sample of the entries. The interference needs whole matrices, and stays unknown."""

    def __init__(self, num_elements: int, num_experts: int) -> None:
        self._num_elements = num_elements
        self._sampled = 0
        self._products = torch.zeros((num_experts + 1, num_experts + 1), dtype=torch.float64)

    def sample(self, block: Block) -> torch.Tensor:
        """Return the first entries of the task vectors, (N, entries): call it before the block is merged."""
        first = Block(block.stream, block.start, block.start + _sampled_entries(block.stop - block.start))
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
    return torch.cat([part[: _sampled_entries(len(part))] for part in _blocks(whole.reshape(-1))])


def _blocks(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    for start in range(0, len(flat), BLOCK):
        yield flat[start : start + BLOCK]


def _sampled_entries(size: int) -> int:
    return min(size, max(_LEAST, size // _ONE_OF))
