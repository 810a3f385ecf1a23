"""TIES: trim each task vector to its largest entries, elect a sign per entry, average the entries that agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import keep_largest
from ..lazy_torch import torch
from ..tensor_inputs import BlockwiseInputs

if TYPE_CHECKING:
    from ..elementwise.block_selection import BlockSelection


class TiesParameters(CombineParameters):
    normalize: bool = Field(True, description="divide each entry by the sum of the weights of the experts that agree")


class Ties(GeneralizedTaskArithmetic[TiesParameters, SparseExpert]):
    """base + lambda * weighted mean of those r_i that have the sign of sum_i weight_i r_i, entry by entry.

    r_i is v_i with its largest entries in magnitude, a fraction `density`; the others are 0.

    Cost: one pass; about 15 operations per entry and expert.

    References
    ----------
    TIES-Merging: Resolving Interference When Merging Models, arXiv:2306.01708
    """

    name = "ties"
    summary = "trim to the largest entries, elect a sign per entry, average what agrees with it"
    source = "arXiv:2306.01708"
    Parameters = TiesParameters
    Expert = SparseExpert
    order_matters = True  # where votes cancel, rounding of the sum in recipe order decides the elected sign
    elects_signs = True
    num_thresholds = 1
    has_block_form = True

    def keep(self, delta: torch.Tensor, expert: SparseExpert, generator: torch.Generator) -> torch.Tensor | None:
        return keep_largest(delta, expert.density)

    def block_selection(
        self, inputs: BlockwiseInputs, index: int, expert: SparseExpert, *, remember: bool
    ) -> BlockSelection:
        from ..elementwise.block_selection import keep_largest as keep_in_blocks

        return keep_in_blocks(inputs.num_elements, inputs.dtype.itemsize, expert.density)
