"""Model Breadcrumbs: drop each task vector's outliers and its smallest entries; plain sum or TIES' elected signs."""

from __future__ import annotations

from pydantic import Field

from ..elementwise.generalized_task_arithmetic import CombineParameters, GeneralizedTaskArithmetic, SparseExpert
from ..elementwise.sparsify import without_outliers
from ..lazy_torch import torch


class BreadcrumbsExpert(SparseExpert):
    gamma: float = Field(0.01, ge=0, le=1, description="fraction of largest entries that is dropped as outliers")


class Breadcrumbs(GeneralizedTaskArithmetic[CombineParameters, BreadcrumbsExpert]):
    """Cost: one pass; about 25 operations an entry and expert, most of them to find the two thresholds.

    References
    ----------
    Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, arXiv:2312.06795
    """

    name = "breadcrumbs"
    summary = "drop each task vector's outliers and smallest entries, sum"
    source = "arXiv:2312.06795"
    Parameters = CombineParameters
    Expert = BreadcrumbsExpert
    elects_signs = False
    sorts_ties = True

    def keep(self, delta: torch.Tensor, expert: BreadcrumbsExpert, generator: torch.Generator) -> torch.Tensor | None:
        return without_outliers(delta, expert.density, expert.gamma)


class BreadcrumbsTies(Breadcrumbs):
    name = "breadcrumbs_ties"
    summary = "drop each task vector's outliers and smallest entries, elect a sign per entry, sum what agrees"
    order_matters = True  # where votes cancel, the elected sign is that of the rounded sum in the recipe's order
    elects_signs = True
