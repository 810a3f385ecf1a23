"""The form in which the sums over a set of experts are stored, so that adding an expert reads only that expert.

* "operator": C, D and S, K^2 + 2 M K elements for any number of experts; decomposed by the gram route.
* "factors": the LoRA factors of the experts, multiplied by weights and scalings, if all experts are LoRA and the
  row-space route is cheaper. Further passes over the experts (energies, SVC) use them too.

Shapes: M = out features (D1), K = in features (D2), R = rank of one expert, P = sum of the ranks, N = experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from ...errors import CorruptObjectError, ShapeError
from ..lazy_torch import torch
from ..task_vectors import LowRank
from .decompose import choose_route
from .operator import InterferenceOperator

StoredForm = Literal["operator", "factors"]


def stored_form(shape: tuple[int, int], max_ranks: Sequence[int], all_low_rank: bool) -> StoredForm:
    """Return the form for experts of these ranks."""
    return "factors" if all_low_rank and choose_route(shape, max_ranks) == "row_space" else "operator"


def stored_elements(shape: tuple[int, int], max_ranks: Sequence[int], form: StoredForm) -> int:
    """Return the number of elements of a form, in the arithmetic dtype."""
    rows, columns = shape
    return sum(max_ranks) * (rows + columns) if form == "factors" else columns * columns + 2 * rows * columns


def reorder_experts(operator: InterferenceOperator, order: Sequence[int]) -> InterferenceOperator:
    """Return the sums with the norms of experts order[0], order[1], ...; they were in the order of addition."""
    return dataclasses.replace(operator, norms=operator.norms[list(order)])


def stack_factors(experts: Sequence[LowRank]) -> dict[str, torch.Tensor]:
    """Return the tensors to store: left (M, P), right (P, K) and the ranks (N,) of the experts."""
    return {
        "left": torch.cat([expert.left for expert in experts], dim=1),
        "right": torch.cat([expert.right for expert in experts], dim=0),
        "ranks": torch.tensor([expert.rank for expert in experts], dtype=torch.int64),
    }


def unstack_factors(tensors: Mapping[str, torch.Tensor]) -> list[LowRank]:
    """Return the experts from the tensors of `stack_factors`, as views.

    Raises
    ------
    CorruptObjectError : a tensor is missing, or the shapes do not fit
    """
    try:
        ranks = [int(rank) for rank in tensors["ranks"]]
        lefts = torch.split(tensors["left"], ranks, dim=1)
        rights = torch.split(tensors["right"], ranks, dim=0)
        return [LowRank(left, right) for left, right in zip(lefts, rights, strict=True)]
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, ShapeError) as error:
        raise CorruptObjectError(f"stored factors do not fit each other ({str(error)[:100]}); recompute them") from None
