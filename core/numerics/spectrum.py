"""One layer's decomposition in the form all spectral methods share, and the one place where filters are applied.

    merged delta = sum_k (sum_b g_bk left_bk) right_k^T

Shapes: M = out features (D1), K = in features (D2), R = number of directions, N = experts. A *block* b is a named set
of left vectors over the same right vectors. Most decompositions have one block, "left" (u_k of an SVD). The WUDI family
has two: "target" = D q_k and "sum" = S q_k with S = sum_i v_i. Because the rows of S lie in the range of C, the anchor
theta_0 = c S (c = 1, 1/N or 0) is inside the same sum,

    theta_0 + sum_k f_k/lambda_k (D - theta_0 C) q_k q_k^T = sum_k [c (1 - f_k) S q_k + f_k/lambda_k D q_k] q_k^T,

so changing the anchor, like changing the filter, needs neither the experts nor a new decomposition, and no
D - theta_0 C is ever formed (it cancels badly in float32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ShapeError
from .lazy_torch import torch


@dataclass(frozen=True, slots=True)
class Spectrum:
    """One layer's decomposition.

    kind : str
        Decomposition kind, e.g. "interference", "svd_of_sum"; with its parameters it names what was computed.
    shape : (M, K)
    num_experts : int
    values : Tensor, (R,), descending (eigenvalues or singular values), arithmetic dtype
    right : Tensor, (R, K), row k is right_k
    left : mapping of block name to Tensor (R, M), row k is left_k
    statistics : mapping of name to Tensor (R,) or (R, N), small per-direction numbers that filters and rank rules need
    info : small JSON-able facts (noise floor, expert norms, the route taken: "gram", "row_space", ...)
    """

    kind: str
    shape: tuple[int, int]
    num_experts: int
    values: torch.Tensor
    right: torch.Tensor
    left: Mapping[str, torch.Tensor]
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    info: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, columns = self.shape
        directions = self.values.shape[0]
        if tuple(self.right.shape) != (directions, columns):
            raise ShapeError(f"spectrum right is {tuple(self.right.shape)}, expected {(directions, columns)}")
        for name, block in self.left.items():
            if tuple(block.shape) != (directions, rows):
                raise ShapeError(f"spectrum left block {name!r} is {tuple(block.shape)}, expected {(directions, rows)}")

    @property
    def num_directions(self) -> int:
        return self.values.shape[0]
