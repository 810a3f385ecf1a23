"""The space that the leading singular directions of all experts cover, and the experts in it.

Shapes: M = out features, K = in features, N = experts, r_i = directions of expert i, P = sum of the r_i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..lazy_torch import torch
from .compact_svd import CompactSVD, polar_decomposition


@dataclass(frozen=True, slots=True)
class CoverSpace:
    """Orthonormal directions for the columns and rows of all experts, closest to their own leading ones.

    left : Tensor, (P, M), polar factor of the left singular vectors u of all experts, one expert after the other
    right : Tensor, (P, K), the same of the right ones v
    left_coordinates : Tensor, (P, P), float64, row k has the coordinates of the k-th u
    right_coordinates : Tensor, (P, P), float64, the same of the v
    values : the value of each direction, one tensor (r_i,) for each expert
    """

    left: torch.Tensor
    right: torch.Tensor
    left_coordinates: torch.Tensor
    right_coordinates: torch.Tensor
    values: Sequence[torch.Tensor]

    @property
    def blocks(self) -> list[slice]:
        """The directions of each expert."""
        found: list[slice] = []
        for values in self.values:
            start = found[-1].stop if found else 0
            found.append(slice(start, start + len(values)))
        return found

    def projections(self) -> Iterator[torch.Tensor]:
        """Yield each expert in the space, sum_k values_k (left u_k) (right v_k)^T over its directions, (P, P)."""
        for block, values in zip(self.blocks, self.values, strict=True):
            yield (self.left_coordinates[block].T * values.double()) @ self.right_coordinates[block]


def cover_space(experts: Sequence[CompactSVD], values: Sequence[torch.Tensor]) -> CoverSpace:
    """Return the space that the triplets of the experts cover; `values` are used in place of their singular values.

    Linearly dependent directions are shared, as in `polar_rows`.

    Cost: two polar factors of P rows, 4 P^2 (M + K) + 22 P^3 flops in float64.
    """
    left, left_coordinates = polar_decomposition(torch.cat([expert.left for expert in experts]))
    right, right_coordinates = polar_decomposition(torch.cat([expert.right for expert in experts]))
    return CoverSpace(left, right, left_coordinates, right_coordinates, values)
