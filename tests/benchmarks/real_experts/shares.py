"""The share of the experts' gain that merges keep, and paired standard errors over items and sets.

    share of a set = sum over tasks of (merge - base) / sum over tasks of (expert - base)

with accuracies on the same items. The share of a row is the mean over sets. Its standard error has two parts, added in
squares: that of the choice of items, to first order, from the variance over items of the residual
`(merge - base) - share (expert - base)`, averaged over the sets, which have the same items; and that of the sets, the
standard deviation of their shares over the root of their number. Since the second has a part of the first in it, the
sum is on the safe side. The error of a difference of two rows is computed from the differences item by item and set by
set, so what is common to both rows does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Answers = dict[str, Tensor]  # task to the correct answers, (items,), 1.0 or 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its standard error, and its values in the single sets."""

    value: float
    error: float
    sets: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f}"

    @property
    def signed(self) -> str:
        return f"{100 * self.value:+.1f} ± {100 * self.error:.1f}"


@dataclass(frozen=True, slots=True)
class SetAnswers:
    """Answers of one set: of the base, of each expert on its own task, and of the merges by name of the row."""

    base: Answers
    experts: Answers
    rows: dict[str, Answers]

    @property
    def gain(self) -> float:
        """The summed gain of the experts in accuracy."""
        return sum(float((self.experts[task] - self.base[task]).mean()) for task in self.base)

    def share(self, row: str) -> float:
        kept = sum(float((self.rows[row][task] - self.base[task]).mean()) for task in self.base)
        return kept / self.gain

    def residuals(self, row: str) -> Answers:
        """Return for each item its part in the error of the share, (items,) for each task."""
        share, gain = self.share(row), self.gain
        return {
            task: ((self.rows[row][task] - base) - share * (self.experts[task] - base)) / gain
            for task, base in self.base.items()
        }

    def accuracy(self, row: str) -> float:
        return sum(float(right.mean()) for right in self.rows[row].values()) / len(self.base)


def share_kept(sets: Sequence[SetAnswers], row: str) -> Measured:
    """Return the share of a row over the sets."""
    shares = [answers.share(row) for answers in sets]
    return _measured(shares, _average([answers.residuals(row) for answers in sets]))


def difference(sets: Sequence[SetAnswers], row: str, other: str) -> Measured:
    """Return the share of `row` minus that of `other`."""
    values = [answers.share(row) - answers.share(other) for answers in sets]
    first = _average([answers.residuals(row) for answers in sets])
    second = _average([answers.residuals(other) for answers in sets])
    return _measured(values, {task: first[task] - second[task] for task in first})


def accuracy(sets: Sequence[SetAnswers], row: str) -> float:
    return sum(answers.accuracy(row) for answers in sets) / len(sets)


def _average(residuals: Sequence[Answers]) -> Answers:
    return {task: torch.stack([residual[task] for residual in residuals]).mean(0) for task in residuals[0]}


def _measured(values: Sequence[float], residuals: Answers) -> Measured:
    items = sum(float(residual.var()) / len(residual) for residual in residuals.values())
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values) if len(values) > 1 else 0.0
    return Measured(mean, math.sqrt(items + spread), tuple(values))
