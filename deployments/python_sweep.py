"""`eigenmerge.sweep`: search the parameters of a method, each layer decomposed once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.coordination.stop import StopSignal
from ..core.recipe.recipe import Recipe
from ..core.recipe.settings import Scalar
from ..core.steps.read_recipe import read_recipe
from ..core.sweep.grid import describe
from .python_arguments import errors_name_arguments, number_of_bytes
from .reported_merge import with_prefect_server

if TYPE_CHECKING:
    import pyarrow as pa

    from ..core.cache.result import MergeResult
    from ..core.choices import OptimizerName, PrunerName, SamplerName
    from ..core.sweep.candidate import Candidate
    from ..core.sweep.evaluators.evaluator import Evaluator
    from ..core.sweep.listener import SweepListener
    from ..core.sweep.prepare_sweep import PreparedSweep
    from ..core.sweep.run_sweep import SweepOutcome

_PATIENCE_SECONDS = 10.0


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A finished sweep.

    outcome : rows, best row, its recipe, metric and warnings
    table_place, recipe_place : where the store has the table, and the recipe of the best candidate
    store, device, allow_nonfinite : of the sweep, for `merge`
    with_data : an evaluator measured the scores
    """

    outcome: SweepOutcome
    table_place: str
    recipe_place: str | None
    store: str
    device: str = "cpu"
    allow_nonfinite: bool = False
    with_data: bool = True

    def __repr__(self) -> str:
        metric, scores = self.outcome.metric, self.scores
        best = "none" if scores is None else f"{describe(self.best or {})}: {metric} {scores[metric]}"
        return f"SweepResult({len(self.outcome.rows)} candidates, best {best})"

    @property
    def table(self) -> pa.Table:
        """One row per candidate: parameters, metrics, status, seconds."""
        return self.outcome.table

    @property
    def best(self) -> Mapping[str, Scalar] | None:
        """Parameters of the best candidate; None where no candidate keeps all limits."""
        return None if self.outcome.best is None else dict(self.outcome.best.settings)

    @property
    def scores(self) -> Mapping[str, float | None] | None:
        """Metrics of the best candidate."""
        return None if self.outcome.best is None else dict(self.outcome.best.metrics)

    @property
    def recipe(self) -> Recipe | None:
        """Recipe of the best candidate."""
        return self.outcome.recipe

    def plot(self) -> bytes:
        """Return a PNG image of the scores over each parameter.

        Raises
        ------
        RecipeError : matplotlib is not installed
        """
        from ..core.sweep.plot_response import response_png

        return response_png(self.outcome.rows, self.outcome.metric, self.outcome.lower_is_better)

    def to_dict(self) -> dict[str, object]:
        """Return the result as JSON content."""
        base = self.outcome.base
        return {
            "metric": self.outcome.metric,
            "lower_is_better": self.outcome.lower_is_better,
            "best": self.best,
            "scores": self.scores,
            "base": None if base is None else dict(base.metrics),
            "candidates": [
                {
                    "settings": dict(row.settings),
                    "metrics": dict(row.metrics),
                    "status": row.status,
                    "seconds": row.seconds,
                    "error": row.error,
                }
                for row in self.outcome.rows
            ],
            "num_scored": self.outcome.num_scored,
            "table": self.table_place,
            "recipe": self.recipe_place,
            "warnings": list(self.outcome.warnings),
        }

    def merge(
        self,
        destination: str | Path,
        *,
        max_memory: int | str | None = None,
        workers: int | None = None,
        overwrite: bool = False,
        use_prefect: bool = True,
        progress: bool | None = None,
    ) -> MergeResult:
        """Merge the best candidate, from the spectra that the store has. Parameters as for `eigenmerge.merge`.

        Its card states the scores, unless they are those of the spectra alone.

        Raises
        ------
        RecipeError : no candidate keeps all limits
        EigenmergeError : as `eigenmerge.merge`
        """
        from ..core.errors import RecipeError
        from ..core.output.model_card import SWEEP_DATA
        from .python_merge import merge

        if self.recipe is None:
            raise RecipeError("no candidate of the sweep keeps all limits, so there is no best one to merge")
        measured = {name: value for name, value in (self.scores or {}).items() if value is not None}
        return merge(
            self.recipe,
            destination,
            store=self.store,
            device=self.device,
            max_memory=max_memory,
            workers=workers,
            overwrite=overwrite,
            allow_nonfinite=self.allow_nonfinite,
            use_prefect=use_prefect,
            progress=progress,
            results={SWEEP_DATA: measured} if self.with_data and measured else None,
        )


@errors_name_arguments
def sweep(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    grid: Mapping[str, str | Scalar | Sequence[Scalar]],
    evaluate: str | Callable[[Candidate], Any] | Evaluator | None = None,
    *,
    store: str | Path | None = None,
    device: str = "cpu",
    max_memory: int | str | None = None,
    workers: int | None = None,
    parallel: int = 1,
    allow_nonfinite: bool = False,
    rank_by: str | None = None,
    lower_is_better: Sequence[str] = (),
    minimums: Mapping[str, float] | None = None,
    not_below_base: bool = False,
    optimizer: OptimizerName = "grid",
    sampler: SamplerName = "tpe",
    pruner: PrunerName = "none",
    trials: int | None = None,
    seed: int = 0,
    key: str | None = None,
    fresh: bool = False,
    scratch: str | Path | None = None,
    use_prefect: bool = True,
) -> SweepResult:
    """Score the candidates of a grid, and keep their table in the store. The same call resumes after a kill.

    Parameters
    ----------
    recipe : a Recipe, a mapping, the path or URI of a recipe file, or its text
    grid : parameter of the method to its values: a sequence, or text such as "0.5:0.95:0.05", "100,300", or for an
        optimizer "10..3000:log"
    evaluate : a function of a `Candidate` that returns a number, or numbers by name; "module:function"; one of
        `accuracy_evaluator`, `perplexity_evaluator`, ...; None scores from the spectra alone (docs/sweep.md says which
        of these scores can be trusted)
    store : directory or URI that keeps spectra and the table
    max_memory : bytes that all workers and the spectra in memory may use, as a number or as "16GB"
    parallel : candidates that are evaluated at the same time
    rank_by : metric that is ranked by; by default the first one
    lower_is_better : metrics whose smaller values are better
    minimums : worst value of each of these metrics that is accepted (the largest one where lower is better)
    not_below_base : accept no candidate that is worse than the base model in any metric
    optimizer, sampler, pruner, trials, seed : "optuna" proposes `trials` candidates instead of a whole grid
    key : identifies the scores of a function whose code does not, because it is a lambda or refers to other data
    fresh : score candidates again that the table has
    scratch : folder for the directories that evaluators ask for
    use_prefect : False runs without a Prefect server, with the same result

    Raises
    ------
    EigenmergeError : for every error that a user can correct
    """
    from ..core.sweep.objective import Objective
    from ..core.sweep.prepare_sweep import Search, prepare_sweep

    prepared = prepare_sweep(
        read_recipe(recipe),
        grid,
        _evaluator(evaluate, key),
        objective=Objective(rank_by, frozenset(lower_is_better), dict(minimums or {}), not_below_base),
        search=Search(optimizer, sampler, pruner, trials, seed, parallel),
        store=None if store is None else str(store),
        device=device,
        max_memory=number_of_bytes("max_memory", max_memory),
        workers=workers,
        allow_nonfinite=allow_nonfinite,
    )
    return reported_sweep(
        prepared,
        fresh=fresh,
        scratch=None if scratch is None else str(scratch),
        use_prefect=use_prefect,
        quiet="prefect" not in sys.modules,  # a process that uses Prefect itself keeps its settings
    )


def reported_sweep(
    prepared: PreparedSweep,
    *,
    fresh: bool = False,
    scratch: str | None = None,
    listeners: Sequence[SweepListener] = (),
    stop: StopSignal | None = None,
    on_begin: Callable[[], None] = _nothing,
    use_prefect: bool = True,
    quiet: bool = True,
    own_process: bool = False,
) -> SweepResult:
    """Run a prepared sweep, and report it to a Prefect server if there is one. Errors as `sweep`.

    `on_begin` is called at the beginning of the flow (`flows.run_context.RunContext`); `own_process` as for
    `reported_merge`.
    """
    stop = stop or StopSignal()

    def without_prefect() -> SweepOutcome:
        from ..core.errors import RecipeError
        from ..core.sweep.run_sweep import run_sweep

        if prepared.recipe.runner.kind != "threads":
            raise RecipeError(
                f"runner {prepared.recipe.runner.kind!r} works through a Prefect server; set PREFECT_API_URL to one"
                " that answers, or choose runner 'threads'"
            )
        return run_sweep(prepared, fresh=fresh, scratch=scratch, stop=stop, listeners=listeners)

    def import_flow() -> Callable[[bool], SweepOutcome]:
        from prefect.exceptions import TerminationSignal

        from ..flows.server_health import end_senders
        from ..flows.sweep import SweepContext, sweep_with_reports

        def run(on_page: bool) -> SweepOutcome:
            context = SweepContext(prepared, fresh, scratch, tuple(listeners), stop, on_begin)
            try:
                return sweep_with_reports(context)
            except TerminationSignal:  # SIGTERM before the flow began, while the handler of Prefect was set
                stop.stop("SIGTERM")
                raise stop.error() from None
            finally:
                end_senders(_PATIENCE_SECONDS if on_page and not context.server.failure else 0)

        return run

    outcome, warning = with_prefect_server(
        import_flow, without_prefect, use_prefect=use_prefect, quiet=quiet, own_process=own_process
    )
    outcome = replace(outcome, warnings=(*outcome.warnings, warning)) if warning else outcome
    return _result(outcome, prepared)


def _evaluator(evaluate: str | Callable[[Candidate], Any] | Evaluator | None, key: str | None) -> Evaluator | None:
    from ..core.sweep.evaluators.evaluator import Evaluator, from_function
    from ..core.sweep.evaluators.load_function import load_function

    if evaluate is None or isinstance(evaluate, Evaluator):
        return evaluate
    return load_function(evaluate) if isinstance(evaluate, str) else from_function(evaluate, key=key)


def _result(outcome: SweepOutcome, prepared: PreparedSweep) -> SweepResult:
    store = prepared.store
    return SweepResult(
        outcome,
        table_place=store.display(outcome.table_key),
        recipe_place=None if outcome.recipe_key is None else store.display(outcome.recipe_key),
        store=store.root_uri,
        device=prepared.device,
        allow_nonfinite=prepared.allow_nonfinite,
        with_data=prepared.evaluator is not None,
    )
