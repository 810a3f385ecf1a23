"""A case: what is measured for one row, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from .results import Figures, Row


@dataclass(frozen=True, slots=True)
class Case:
    """One row to measure.

    group, label : of the row
    contenders : what measures one run of each, by name; they take turns in this order
    num_runs : of each contender in a full measurement
    num_checks : of each contender in a check; 0: too slow for a check, or nothing to compare with
    warmups : turns before them that are not counted
    """

    group: str
    label: str
    contenders: Mapping[str, Callable[[], Figures]]
    num_runs: int
    num_checks: int = 0
    warmups: int = 0

    def measure(self, num_runs: int) -> Row:
        """Let the contenders run in turn, so that a change of the machine's speed meets all of them."""
        row = Row(self.group, self.label, f"{datetime.now(UTC):%Y-%m-%d}")
        for turn in range(self.warmups + num_runs):
            for name, contender in self.contenders.items():
                figures = contender()
                if turn >= self.warmups:
                    row.runs.setdefault(name, []).append(figures)
        return row
