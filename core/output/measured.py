"""What the manifest states about the experts: norms, interference and cosines of each tensor, overlaps over all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..cache.reports import ShardReport
from ..numerics.interference.expert_probes import Measures
from ..planning.plan import Plan

# More experts than this have no table of overlaps: it grows with the square of their number.
_MOST_IN_TABLE = 64


def measured_row(measures: Measures) -> dict[str, Any]:
    """Return the measures of one tensor as norms and cosines; see `ManifestMeasures`."""
    norms = [math.sqrt(square) for square in measures.squares]
    delta = math.sqrt(measures.delta)
    row: dict[str, Any] = {
        "delta": _short(delta),
        "norms": [_short(norm) for norm in norms],
        "cosines": [_cosine(value, norm * delta) for value, norm in zip(measures.along, norms, strict=True)],
        "with_others": _with_others(measures),
    }
    if measures.before:
        row |= {
            "before": [_short(value) for value in measures.before],
            "after": [_short(value) for value in measures.after],
        }
    if measures.within:
        shares = zip(measures.within, measures.squares, strict=True)
        row["alignment"] = [_short(math.sqrt(min(1.0, own / whole))) if whole > 0 else 0.0 for own, whole in shares]
    return row


def overlap_of_experts(plan: Plan, reports: Mapping[int, ShardReport]) -> list[list[float | None]] | None:
    """Return the cosines of the experts' task vectors over all tensors, (N, N), by the experts' order in the recipe.

    None for a pair that no tensor was measured with; None instead of a table where nothing was measured, or with more
    than 64 experts.
    """
    count = len(plan.experts)
    if not 1 < count <= _MOST_IN_TABLE:
        return None
    inner = [[0.0] * count for _ in range(count)]
    squares = [[0.0] * count for _ in range(count)]  # [i][j]: of i in tensors with i and j
    for order, measures in _measured(plan, reports):
        for first, second, value in _pairs(order, measures.inner):
            inner[first][second] += value
            inner[second][first] += value
        for place, own in zip(order, measures.squares, strict=True):
            for other in order:
                squares[place][other] += own
    if not any(map(any, squares)):
        return None
    return [
        [
            1.0
            if first == second
            else _cosine_or_none(inner[first][second], squares[first][second], squares[second][first])
            for second in range(count)
        ]
        for first in range(count)
    ]


def _measured(plan: Plan, reports: Mapping[int, ShardReport]) -> Iterator[tuple[tuple[int, ...], Measures]]:
    for shard in plan.shards:
        for planned, done in zip(shard.tensors, reports[shard.index].tensors, strict=True):
            if done.measures is not None:
                yield tuple(expert.expert for expert in planned.experts), done.measures


def _pairs(order: Sequence[int], inner: Sequence[float]) -> Iterator[tuple[int, int, float]]:
    """Yield the experts of each pair with their inner product; an expert may occur twice, which is no pair."""
    values = iter(inner)
    for place, first in enumerate(order):
        for second in order[place + 1 :]:
            value = next(values)
            if first != second:
                yield first, second, value


def _with_others(measures: Measures) -> list[float]:
    """Return the cosine of each task vector with the sum of the others."""
    count = len(measures.squares)
    sums = [0.0] * count  # <v_i, sum of the others>
    for first, second, value in _pairs(range(count), measures.inner):
        sums[first] += value
        sums[second] += value
    everything = math.fsum(measures.squares) + math.fsum(sums)
    found: list[float] = []
    for own, square in zip(sums, measures.squares, strict=True):
        rest = max(0.0, everything - 2.0 * own - square)
        found.append(_cosine(own, math.sqrt(square * rest)))
    return found


def _cosine(inner: float, norms: float) -> float:
    return round(max(-1.0, min(1.0, inner / norms)), 4) + 0.0 if norms > 0 else 0.0


def _cosine_or_none(inner: float, first: float, second: float) -> float | None:
    return _cosine(inner, math.sqrt(first * second)) if first > 0 and second > 0 else None


def _short(value: float) -> float:
    return float(f"{value:.4g}")
