"""Copy the rows of one vocabulary to their positions in another. `core/planning/plan.py` defines `Rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from ..planning.plan import ExpertTensor, Rows


def place_rows(stored: torch.Tensor, rows: Rows, into: torch.Tensor) -> torch.Tensor:
    """Copy the runs of rows of `stored` into `into`, in place, and return it."""
    for start, origin, length in rows:
        into[start : start + length] = stored[origin : origin + length]
    return into


def covered(rows: Rows | None, num_rows: int) -> torch.Tensor:
    """Return which output rows the runs cover, (num_rows,) bool; all of them for None."""
    if rows is None:
        return torch.ones(num_rows, dtype=torch.bool)
    is_covered = torch.zeros(num_rows, dtype=torch.bool)
    for start, _, length in rows:
        is_covered[start : start + length] = True
    return is_covered


def fill_with_means(
    into: torch.Tensor,
    wanted: torch.Tensor,
    experts: Iterable[ExpertTensor],
    read: Callable[[ExpertTensor], torch.Tensor],
) -> torch.Tensor:
    """Set the `wanted` rows of `into` to the mean of the experts that have them, in place, as mergekit does.

    Adapters have no rows of their own. A row that no expert has (padding) is not changed.

    Cost: one pass over the experts that have any of these rows; two copies of these rows.

    Parameters
    ----------
    wanted : Tensor, (rows of the output,), bool, CPU
    read : returns the stored tensor of one expert in the arithmetic dtype
    """
    index = wanted.nonzero().squeeze(1)
    position = torch.full((len(wanted),), -1)
    position[index] = torch.arange(len(index))
    total = into.new_zeros((len(index), *into.shape[1:]))
    counts = torch.zeros(len(index), dtype=into.dtype)
    for expert in experts:
        if expert.full is None or not bool((wanted & covered(expert.rows, len(wanted))).any()):
            continue
        stored = read(expert)
        for start, origin, length in expert.rows if expert.rows is not None else ((0, 0, len(wanted)),):
            here = position[start : start + length]
            offsets = (here >= 0).nonzero().squeeze(1)
            total.index_add_(0, here[offsets].to(into.device), stored[(origin + offsets).to(into.device)])
            counts[here[offsets]] += 1
    found = counts > 0
    means = total / counts.clamp(min=1).to(into.device).reshape(-1, *[1] * (into.ndim - 1))
    into[index[found].to(into.device)] = means[found.to(into.device)]
    return into
