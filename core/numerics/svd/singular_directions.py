"""Singular triplets collected from several experts and made orthonormal together, for TSV-M and Iso-CTS.

Shapes: M = out features, K = in features, R = number of directions, N = experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ..lazy_torch import torch
from ..method import SpectralParameters
from ..spectrum import Spectrum
from ..task_vectors import LowRank
from .compact_svd import CompactSVD, polar_rows

ZeroExperts = Literal["axes", "nothing"]


class CollectingParameters(SpectralParameters):
    """Parameters of the methods that collect directions of each expert."""

    zero_experts: ZeroExperts = Field(
        "nothing",
        description="directions of a full expert whose delta is exactly zero: nothing, or axes = the first coordinate"
        " axes, as in the published code (the SVD of a zero matrix)",
    )


class DirectionSet:
    """Triplets (u, sigma, v) in the order of addition, each with the index of its expert."""

    def __init__(self) -> None:
        self._left: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._right: list[torch.Tensor] = []
        self._experts: list[torch.Tensor] = []

    def add(self, svd: CompactSVD, expert: int) -> None:
        """Add the triplets of an expert; -1 for those of the sum."""
        self._left.append(svd.left)
        self._values.append(svd.values)
        self._right.append(svd.right)
        self._experts.append(torch.full_like(svd.values, float(expert)))

    def add_axes(self, like: torch.Tensor, num_directions: int, expert: int) -> None:
        """Add coordinate axes with singular value 0: the other directions are made orthogonal to them."""
        rows, columns = like.shape
        self._left.append(torch.eye(num_directions, rows, dtype=like.dtype, device=like.device))
        self._values.append(like.new_zeros(num_directions))
        self._right.append(torch.eye(num_directions, columns, dtype=like.dtype, device=like.device))
        self._experts.append(like.new_full((num_directions,), float(expert)))

    def orthonormal(
        self,
        kind: str,
        shape: tuple[int, int],
        num_experts: int,
        *,
        keep_zero_values: bool,
        info: Mapping[str, object] | None = None,
    ) -> Spectrum:
        """Return the spectrum of the triplets with left and right vectors replaced by their polar factors.

        Values are descending; `statistics["expert"]` (R,) is the index of the expert of each direction (-1: the sum).

        Cost: two `polar_rows`.

        Parameters
        ----------
        kind : of the spectrum
        shape : (M, K)
        num_experts : N
        keep_zero_values : False: leave out directions whose value is 0
        info : more facts for the spectrum
        """
        values = torch.cat(self._values)
        if not bool(values.any()):
            keep_zero_values = False  # all experts are 0, and so is the result
        order = values.argsort(descending=True, stable=True)
        if not keep_zero_values:
            order = order[: int((values > 0).sum())]
        left, right = torch.cat(self._left), torch.cat(self._right)
        self._left.clear()
        self._right.clear()
        num_collected = left.shape[0]
        left, right = polar_rows(left)[order], polar_rows(right)[order]
        experts = torch.cat(self._experts)[order]
        facts = {"collected": num_collected, "full_rank": min(shape), **(info or {})}
        return Spectrum(kind, shape, num_experts, values[order], right, {"left": left}, {"expert": experts}, facts)


def is_exactly_zero(vector: torch.Tensor | LowRank) -> bool:
    """Return True for a dense expert that is 0 in every entry; factors that are 0 have no directions."""
    return not isinstance(vector, LowRank) and not bool(vector.any())


def directions_per_expert(shape: tuple[int, int], num_experts: int) -> int:
    """Return min(M, K) // N, at least 1: the directions of each expert, as all experts share min(M, K)."""
    return max(1, min(shape) // num_experts)


def count_collected(shape: tuple[int, int], max_ranks: Sequence[int]) -> int:
    """Return how many directions are collected from experts of these ranks at most."""
    per_expert = directions_per_expert(shape, len(max_ranks))
    return sum(min(rank, per_expert) for rank in max_ranks)


def collected_elements(shape: tuple[int, int], num_directions: int) -> int:
    """Return the projected elements of the set and of making it orthonormal: both sides, twice, and a Gram matrix."""
    return 3 * num_directions * sum(shape) + 14 * num_directions**2
