"""Which candidate is the best: one metric to rank by, and a minimum for each metric that has one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..cache.sweep_tables import RESERVED_COLUMNS, SweepRow
from ..errors import EvaluatorError, RecipeError, suggestion


@dataclass(frozen=True, slots=True)
class Objective:
    """What the user asks for.

    rank_by : metric; None is the first that the evaluator returns
    lower_is_better : metrics whose smaller values are better
    limits : worst value that each of these metrics may have: a minimum, or a maximum where lower is better
    not_below_base : no metric may be worse than that of the base model
    """

    rank_by: str | None = None
    lower_is_better: frozenset[str] = field(default_factory=frozenset[str])
    limits: Mapping[str, float] = field(default_factory=dict[str, float])
    not_below_base: bool = False

    def metric(self, names: Sequence[str]) -> str:
        """Return the metric that is ranked by.

        Raises
        ------
        EvaluatorError : the evaluator does not return a metric that the user named
        """
        for name in (self.rank_by, *self.limits, *self.lower_is_better):
            if name is not None and name not in names:
                raise EvaluatorError(f"the evaluator returns no metric {name!r}{suggestion(name, names)}")
        return self.rank_by or names[0]

    def best(self, rows: Iterable[SweepRow], base: Mapping[str, float | None] | None = None) -> SweepRow | None:
        """Return the best scored row that keeps all limits, the first of equal ones; None where there is none."""
        scored = [row for row in rows if row.status == "scored" and row.metrics]
        kept = [row for row in scored if not self.violations(row.metrics, base)]
        if not kept:
            return None
        metric = self.metric(list(kept[0].metrics))
        defined = [row for row in kept if row.metrics.get(metric) is not None]
        sign = -1.0 if metric in self.lower_is_better else 1.0
        return max(defined, key=lambda row: sign * (row.metrics[metric] or 0.0), default=None)

    def violations(
        self, metrics: Mapping[str, float | None], base: Mapping[str, float | None] | None = None
    ) -> list[str]:
        """Return the metrics that are worse than their limit, or than the base's; an undefined one is."""
        found: list[str] = []
        for name, limit in self._all_limits(base).items():
            value = metrics.get(name)
            if value is None or (value > limit if name in self.lower_is_better else value < limit):
                found.append(name)
        return found

    def limits_as_text(self, base: Mapping[str, float | None] | None = None) -> tuple[str, ...]:
        """Return each limit of `violations` as text: "accuracy at least 0.8"."""
        return tuple(
            f"{name} at {'most' if name in self.lower_is_better else 'least'} {limit:.6g}"
            for name, limit in self._all_limits(base).items()
        )

    def _all_limits(self, base: Mapping[str, float | None] | None) -> dict[str, float]:
        limits = dict(self.limits)
        if self.not_below_base:
            for name, value in (base or {}).items():
                if value is not None:
                    stricter = min if name in self.lower_is_better else max
                    limits[name] = stricter(limits.get(name, value), value)
        return limits


def parse_limits(texts: Iterable[str]) -> dict[str, float]:
    """Return the limits of `METRIC=VALUE` arguments.

    Raises
    ------
    RecipeError : no name, no number, or the same metric twice
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        try:
            number = float(value)
        except ValueError:
            raise RecipeError(f"--minimum {text!r}: expected METRIC=NUMBER, such as accuracy=0.8") from None
        if not name or math.isnan(number):
            raise RecipeError(f"--minimum {text!r}: expected METRIC=NUMBER, such as accuracy=0.8")
        if name in limits:
            raise RecipeError(f"--minimum {name}: is given twice")
        limits[name] = number
    return limits


def check_metric_names(metrics: Iterable[str], parameters: Iterable[str]) -> None:
    """Check that the metrics can be columns beside the parameters.

    Raises
    ------
    EvaluatorError : a metric has the name of another column
    """
    taken = {*RESERVED_COLUMNS, *parameters}
    for name in metrics:
        if name in taken:
            raise EvaluatorError(f"metric {name!r} has the name of another column of the table; choose another name")
