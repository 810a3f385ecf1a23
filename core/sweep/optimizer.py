"""Choose the next candidates: all of a grid, or those that a sampler of Optuna proposes from earlier scores.

A sampler with a seed proposes the same candidates for the same scores. So a sweep that was killed is repeated from its
beginning with the stored scores, which takes no evaluation, and continues as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from ..cache.sweep_tables import SweepRow
from ..choices import PrunerName, SamplerName
from ..errors import RecipeError
from ..recipe.settings import Scalar
from .grid import Axis, all_settings

# Imported by Optuna at the first proposal only.
_NEEDED_BY_SAMPLER = {"gp": "scipy", "cmaes": "cmaes"}


class Pruned(Exception):
    """Raised in an evaluator by `Candidate.report`: the candidate is unlikely to be the best."""


class Trial(Protocol):
    """One proposal."""

    @property
    def settings(self) -> Mapping[str, Scalar]: ...

    def report(self, step: int, value: float) -> None:
        """Accept an intermediate score; raises Pruned."""
        ...


class Optimizer(Protocol):
    """Proposes candidates in batches and is told their scores."""

    @property
    def total(self) -> int:
        """Number of candidates that it proposes in all."""
        ...

    def ask(self, count: int) -> Sequence[Trial]:
        """Return up to `count` proposals; none at the end."""
        ...

    def tell(self, trial: Trial, row: SweepRow, value: float | None) -> None:
        """Accept the outcome of a proposal; `value` is None where it failed, broke a limit or was pruned."""
        ...


@dataclass(frozen=True, slots=True)
class GridTrial:
    """One setting of a grid."""

    settings: Mapping[str, Scalar]

    def report(self, step: int, value: float) -> None:
        """Do nothing: a grid is evaluated whole."""


class GridOptimizer:
    """Every setting of a grid, in order."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        self._trials = [GridTrial(settings) for settings in all_settings(axes)]
        self._next = 0

    @property
    def total(self) -> int:
        return len(self._trials)

    def ask(self, count: int) -> Sequence[GridTrial]:
        found = self._trials[self._next : self._next + count]
        self._next += len(found)
        return found

    def tell(self, trial: Trial, row: SweepRow, value: float | None) -> None:
        """Do nothing: the order of a grid does not depend on scores."""


class OptunaTrial:
    """A proposal of Optuna."""

    def __init__(self, trial: Any, settings: Mapping[str, Scalar]) -> None:
        self.trial = trial
        self.settings = settings

    def report(self, step: int, value: float) -> None:
        self.trial.report(value, step)
        if self.trial.should_prune():
            raise Pruned


class OptunaOptimizer:
    """A sampler of Optuna on the axes: values that are words are categories, numbers are ordered.

    Raises
    ------
    RecipeError : Optuna, or what the sampler needs, is not installed

    References
    ----------
    Optuna, arXiv:1907.10902
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        *,
        trials: int,
        sampler: SamplerName = "tpe",
        pruner: PrunerName = "none",
        seed: int = 0,
        lower_is_better: bool = False,
    ) -> None:
        optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._axes = {axis.name: axis for axis in axes}
        self._distributions = {axis.name: _distribution(optuna, axis) for axis in axes}
        self._states = optuna.trial.TrialState
        self._study = optuna.create_study(
            direction="minimize" if lower_is_better else "maximize",
            sampler=_make_sampler(optuna, sampler, seed),
            pruner=_make_pruner(optuna, pruner),
        )
        self._left = self._total = trials

    @property
    def total(self) -> int:
        return self._total

    def ask(self, count: int) -> Sequence[OptunaTrial]:
        count = min(count, self._left)
        self._left -= count
        return [self._ask_one() for _ in range(count)]

    def _ask_one(self) -> OptunaTrial:
        trial = self._study.ask(self._distributions)
        settings = {name: _value(self._axes[name], trial.params[name]) for name in self._axes}
        return OptunaTrial(trial, settings)

    def tell(self, trial: Trial, row: SweepRow, value: float | None) -> None:
        assert isinstance(trial, OptunaTrial)
        reported = self._study.trials[trial.trial.number].intermediate_values
        for step, score in row.steps:  # of a candidate that was scored before
            if step not in reported:
                trial.trial.report(score, step)
        if value is not None:
            self._study.tell(trial.trial, value)
        else:
            self._study.tell(trial.trial, state=self._states.PRUNED if row.status == "pruned" else self._states.FAIL)


def import_optuna() -> Any:
    """Return the module `optuna`.

    Raises
    ------
    RecipeError : it is not installed
    """
    try:
        import optuna
    except ImportError:
        raise RecipeError("--optimizer optuna needs an extra: pip install 'eigenmerge[sweep]'") from None
    return optuna


def _distribution(optuna: Any, axis: Axis) -> Any:
    """Return the distribution of an axis. Numbers of a list are positions in it, so that neighbors stay neighbors."""
    if axis.interval is not None:
        return optuna.distributions.FloatDistribution(axis.interval.low, axis.interval.high, log=axis.interval.log)
    if _is_ordered(axis):
        return optuna.distributions.IntDistribution(0, len(axis.values) - 1)
    return optuna.distributions.CategoricalDistribution(range(len(axis.values)))


def _value(axis: Axis, proposed: float) -> Scalar:
    if axis.interval is not None:
        return float(proposed)
    order = sorted(axis.values, key=_number) if _is_ordered(axis) else axis.values
    return order[int(proposed)]


def _is_ordered(axis: Axis) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in axis.values)


def _number(value: Scalar) -> float:
    assert isinstance(value, (int, float))
    return float(value)


def _make_sampler(optuna: Any, name: SamplerName, seed: int) -> Any:
    if (package := _NEEDED_BY_SAMPLER.get(name)) is not None and find_spec(package) is None:
        raise RecipeError(f"--sampler {name} needs {package}: pip install 'eigenmerge[sweep]'")
    samplers = optuna.samplers
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    if name == "gp":
        return samplers.GPSampler(seed=seed, deterministic_objective=True)
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=seed)
    return samplers.TPESampler(seed=seed)


def _make_pruner(optuna: Any, name: PrunerName) -> Any:
    if name == "median":
        return optuna.pruners.MedianPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()
