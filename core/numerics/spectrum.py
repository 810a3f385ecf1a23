"""The decomposition of one layer, in the form that all spectral methods share.

    merged delta = sum_k (sum_b g_bk left_bk) right_k^T

A *block* b is a named set of left vectors, one for each right vector. Most decompositions have one block, "left" (u_k
of an SVD). The WUDI family has two: "target" = D q_k and "sum" = S q_k with S = sum_i v_i. The rows of S are in the
range of C, so the anchor theta_0 = c S (c = 1, 1/N or 0) is part of the same sum:

    theta_0 + sum_k f_k/lambda_k (D - theta_0 C) q_k q_k^T = sum_k [c (1 - f_k) S q_k + f_k/lambda_k D q_k] q_k^T

Another anchor, like another filter, therefore needs neither the experts nor a new decomposition, and D - theta_0 C,
which cancels in float32, is never formed.

Shapes: M = out features (D1), K = in features (D2), R = number of directions, N = experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ShapeError
from .lazy_torch import torch


def _no_statistics() -> Mapping[str, torch.Tensor]:
    return {}


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The decomposition of one layer.

    kind : str
        Kind of the decomposition, as "interference" or "svd_of_sum".
    shape : (M, K)
    num_experts : int
    values : Tensor, (R,), descending (eigenvalues or singular values), arithmetic dtype
    right : Tensor, (R, K), row k is right_k
    left : mapping of block name to Tensor (R, M), row k is left_k
    statistics : mapping of name to Tensor (R,) or (R, N), numbers per direction that filters and rank rules need
    info : small JSON-able values (noise level, expert norms, route: "gram", "row_space", ...)
    """

    kind: str
    shape: tuple[int, int]
    num_experts: int
    values: torch.Tensor
    right: torch.Tensor
    left: Mapping[str, torch.Tensor]
    statistics: Mapping[str, torch.Tensor] = field(default_factory=_no_statistics)
    info: Mapping[str, object] = field(default_factory=dict[str, object])

    def __post_init__(self) -> None:
        rows, columns = self.shape
        directions = self.values.shape[0]
        if tuple(self.right.shape) != (directions, columns):
            raise ShapeError(
                f"spectrum {self.kind!r}: right has shape {tuple(self.right.shape)}, expected {(directions, columns)}"
            )
        for name, block in self.left.items():
            if tuple(block.shape) != (directions, rows):
                raise ShapeError(
                    f"spectrum {self.kind!r}: left block {name!r} has shape {tuple(block.shape)},"
                    f" expected {(directions, rows)}"
                )

    @property
    def num_directions(self) -> int:
        """R."""
        return self.values.shape[0]
