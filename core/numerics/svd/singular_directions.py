"""Singular triplets collected from several experts and made orthonormal together: what TSV-M and Iso-CTS share.

Shapes: M = out features, K = in features, R = number of directions, N = experts.
"""

from __future__ import annotations

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
        "axes",
        description="what a full expert whose delta is exactly zero puts in: axes = the first coordinate axes, as the"
        " published code does (the SVD of a zero matrix), or nothing",
    )


class DirectionSet:
    """Triplets (u, sigma, v) in the order they were added, each with the number of the expert it comes from."""

    def __init__(self) -> None:
        self._left: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._right: list[torch.Tensor] = []
        self._experts: list[torch.Tensor] = []

    def add(self, svd: CompactSVD, expert: int) -> None:
        self._left.append(svd.left)
        self._values.append(svd.values)
        self._right.append(svd.right)
        self._experts.append(torch.full_like(svd.values, float(expert)))

    def add_axes(self, like: torch.Tensor, num_directions: int, expert: int) -> None:
        """Coordinate axes with value zero. They carry nothing, but the others are made orthogonal to them."""
        rows, columns = like.shape
        axes = {"dtype": like.dtype, "device": like.device}
        self._left.append(torch.eye(num_directions, rows, **axes))
        self._values.append(torch.zeros(num_directions, **axes))
        self._right.append(torch.eye(num_directions, columns, **axes))
        self._experts.append(torch.full((num_directions,), float(expert), **axes))

    def orthonormal(self, kind: str, shape: tuple[int, int], num_experts: int, *, keep_zero_values: bool) -> Spectrum:
        """Left and right vectors replaced by their polar factors, in descending order of the values.

        `statistics["expert"]` says which expert a direction comes from (-1: the sum).

        Cost: two `polar_rows`.
        """
        values = torch.cat(self._values)
        if not bool(values.any()):
            keep_zero_values = False  # all experts are zero, and so is the result
        order = values.argsort(descending=True, stable=True)
        if not keep_zero_values:
            order = order[: int((values > 0).sum())]
        left, right = torch.cat(self._left), torch.cat(self._right)
        self._left.clear()
        self._right.clear()
        num_collected = left.shape[0]
        left, right = polar_rows(left)[order], polar_rows(right)[order]
        experts = torch.cat(self._experts)[order]
        info = {"collected": num_collected, "full_rank": min(shape)}
        return Spectrum(kind, shape, num_experts, values[order], right, {"left": left}, {"expert": experts}, info)


def is_exactly_zero(vector: torch.Tensor | LowRank) -> bool:
    """True for a dense expert that was not changed at all. Zero factors simply have no directions."""
    return not isinstance(vector, LowRank) and not bool(vector.any())


def collected_elements(shape: tuple[int, int], num_directions: int) -> int:
    """Projected elements of the set and of making it orthonormal: both sides, twice, and their Gram matrix."""
    return 3 * num_directions * sum(shape) + 14 * num_directions**2
