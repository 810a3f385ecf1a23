"""Model Breadcrumbs: drop outliers and small entries of each task vector; plain sum or TIES' elected signs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import drop_outliers
from ..lazy_torch import torch
from ..tensor_inputs import BlockwiseInputs

if TYPE_CHECKING:
    from ..elementwise.block_selection import BlockSelection


class BreadcrumbsExpert(SparseExpert):
    gamma: float = Field(0.01, ge=0, le=1, description="fraction of entries, the largest, that is dropped as outliers")


class Breadcrumbs(GeneralizedTaskArithmetic[CombineParameters, BreadcrumbsExpert]):
    """base + lambda sum_i weight_i r_i, where r_i is v_i without its largest and its smallest entries.

    Of the n entries sorted by magnitude the largest int(gamma n) are dropped and the next int(density n) are kept.

    Cost: one pass; about 20 operations per entry and expert.

    References
    ----------
    Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, arXiv:2312.06795
    """

    name = "breadcrumbs"
    summary = "drop the outliers and smallest entries of each task vector, sum"
    source = "arXiv:2312.06795"
    Parameters = CombineParameters
    Expert = BreadcrumbsExpert
    elects_signs = False
    num_thresholds = 2
    has_block_form = True

    def keep(self, delta: torch.Tensor, expert: BreadcrumbsExpert, generator: torch.Generator) -> torch.Tensor | None:
        return drop_outliers(delta, expert.density, expert.gamma)

    def block_selection(
        self, inputs: BlockwiseInputs, index: int, expert: BreadcrumbsExpert, *, remember: bool
    ) -> BlockSelection:
        from ..elementwise.block_selection import drop_outliers as drop_in_blocks

        return drop_in_blocks(inputs.num_elements, inputs.dtype.itemsize, expert.density, expert.gamma)


class BreadcrumbsTies(Breadcrumbs):
    """As Breadcrumbs, but only those weight_i r_i are added that have the sign of sum_i weight_i r_i."""

    name = "breadcrumbs_ties"
    summary = "drop the outliers and smallest entries of each task vector, elect a sign per entry, sum what agrees"
    order_matters = True  # where votes cancel, rounding of the sum in recipe order decides the elected sign
    elects_signs = True
