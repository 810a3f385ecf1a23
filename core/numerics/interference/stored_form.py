"""What is kept of a set of experts so that a later one costs a pass over that expert alone.

Two forms. "operator": C, D and S, K^2 + 2 M K elements however many experts there are; decomposed by the gram route.
"factors": the experts' LoRA factors themselves, weights and scalings folded in, while they all are LoRA and the
row-space route is the cheaper one; every further pass over the experts (energies, SVC) then runs on them too.

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
    """What to keep of experts of these ranks."""
    return "factors" if all_low_rank and choose_route(shape, max_ranks) == "row_space" else "operator"


def stored_elements(shape: tuple[int, int], max_ranks: Sequence[int], form: StoredForm) -> int:
    """Number of elements to keep, in the arithmetic dtype."""
    rows, columns = shape
    return sum(max_ranks) * (rows + columns) if form == "factors" else columns * columns + 2 * rows * columns


def reorder_experts(operator: InterferenceOperator, order: Sequence[int]) -> InterferenceOperator:
    """The same sums with the norms of experts `order[0]`, `order[1]`, ...: they come in the order of adding."""
    return dataclasses.replace(operator, norms=operator.norms[list(order)])


def stack_factors(experts: Sequence[LowRank]) -> dict[str, torch.Tensor]:
    """left (M, P), right (P, K) and the ranks (N,) of the experts: what has to be stored."""
    return {
        "left": torch.cat([expert.left for expert in experts], dim=1),
        "right": torch.cat([expert.right for expert in experts], dim=0),
        "ranks": torch.tensor([expert.rank for expert in experts], dtype=torch.int64),
    }


def unstack_factors(tensors: Mapping[str, torch.Tensor]) -> list[LowRank]:
    """The inverse of `stack_factors`; views, nothing is copied.

    Raises
    ------
    CorruptObjectError : these are no stacked factors
    """
    try:
        ranks = [int(rank) for rank in tensors["ranks"]]
        lefts = tensors["left"].split(ranks, dim=1)
        rights = tensors["right"].split(ranks, dim=0)
        return [LowRank(left, right) for left, right in zip(lefts, rights, strict=True)]
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, ShapeError) as error:
        raise CorruptObjectError(f"stored factors do not fit each other ({str(error)[:100]}); recompute them") from None
