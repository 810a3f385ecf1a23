"""A whole sweep without Prefect: decompose once, score the candidates, keep the table, choose the best."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import yaml

from ..cache.spectra.kept_spectra import KeptSpectra
from ..cache.sweep_tables import (
    TABLE_NAME,
    SweepRow,
    sweep_object_key,
    to_table,
    write_best_recipe,
)
from ..coordination.claims import hold_run
from ..coordination.stop import StopSignal
from ..coordination.threads import one_thread
from ..errors import EvaluatorError
from ..planning.plan import LayerShard, Plan
from ..recipe.recipe import Recipe
from ..run import ShardJob
from ..steps.align_layers import align_layers
from ..steps.map_in_threads import map_in_threads
from ..steps.shard_steps import MapShards
from .evaluate_candidate import CandidateJob, MapCandidates, evaluate_candidate, evaluate_in_threads, first_failure
from .evaluators.evaluator import Evaluator
from .grid import Settings, all_settings, corner_settings, describe
from .l_curve import corner_scores
from .listener import SweepListener
from .objective import check_metric_names
from .prepare_sweep import PreparedSweep
from .score_book import ScoreBook
from .shared_tensors import SharedTensors
from .spectra_steps import decompose_spectra, measure_spectra, shards_to_decompose
from .spectral_scores import DATA_FREE_METRICS, SpectralScorer

_BATCH = 16  # candidates of a grid that are planned together


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """The rows of a sweep and the best of them.

    rows : one per candidate, in the order of the grid or of the proposals
    best : None where no candidate keeps all limits
    base : scores of the base model, where they were asked for
    recipe : of the best candidate
    table_key, recipe_key : in the store; recipe_key is None without a best candidate
    num_scored : candidates that this run has scored
    metric : that is ranked by
    limits : of the metrics as text, "accuracy at least 0.8"
    """

    rows: tuple[SweepRow, ...]
    best: SweepRow | None
    base: SweepRow | None
    recipe: Recipe | None
    metric: str
    lower_is_better: bool
    num_scored: int
    table_key: str
    recipe_key: str | None
    warnings: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def table(self) -> pa.Table:
        """The rows as an Arrow table."""
        return to_table(self.rows)

    def ranked(self) -> list[SweepRow]:
        """Return the rows from the best score to the worst, whatever the limits; those without a score come last."""
        sign = 1.0 if self.lower_is_better else -1.0

        def order(row: SweepRow) -> tuple[bool, float]:
            value = row.metrics.get(self.metric) if row.status == "scored" else None
            return value is None, sign * (value or 0.0)

        return sorted(self.rows, key=order)


def run_sweep(
    prepared: PreparedSweep,
    *,
    fresh: bool = False,
    scratch: str | None = None,
    stop: StopSignal | None = None,
    listeners: Sequence[SweepListener] = (),
    map_shards: MapShards = map_in_threads,
    map_candidates: MapCandidates = evaluate_in_threads,
) -> SweepOutcome:
    """Score all candidates of a prepared sweep. Those that the table in the store has are not scored again.

    Parameters
    ----------
    fresh : score them again
    scratch : folder for the temporary directories of candidates; the system's by default

    Raises
    ------
    EvaluatorError : the first candidate failed, all failed, or the evaluator returns other metrics than were named
    InterruptedRunError : `stop` was set; what is scored is in the table
    EigenmergeError : for every other error that a user can correct
    """
    stop = stop or StopSignal()
    with ExitStack() as stack:
        stack.callback(hold_run(prepared.store, prepared.key).release)  # so that no spectrum is collected
        if prepared.search.parallel > 1:  # the number of threads belongs to the process, not to a candidate
            stack.enter_context(one_thread())
        sweep = _Sweep(prepared, ScoreBook(prepared.store, prepared.key, fresh=fresh), stop, listeners, map_shards)
        if prepared.evaluator is None:
            return sweep.without_data()
        shared = stack.enter_context(SharedTensors(*_two_plans(prepared), scratch))
        return sweep.with_evaluator(prepared.evaluator, shared, scratch, map_candidates)


def _two_plans(prepared: PreparedSweep) -> tuple[Plan, Plan]:
    """Return two plans that differ in every parameter of the sweep."""
    first = next(corner_settings(prepared.axes))
    second = {axis.name: axis.ends[-1] for axis in prepared.axes}
    return prepared.plan_of(first), prepared.plan_of(second)


class _Sweep:
    def __init__(
        self,
        prepared: PreparedSweep,
        book: ScoreBook,
        stop: StopSignal,
        listeners: Sequence[SweepListener],
        map_shards: MapShards,
    ) -> None:
        self._prepared, self._book, self._stop = prepared, book, stop
        self._listeners, self._map_shards = listeners, map_shards
        self._decomposed: set[str] = set()
        self._rows: dict[str, SweepRow] = {}  # of the candidates of this sweep, without repetitions
        self._places: dict[str, int] = {}  # of the candidates in the order of the proposals
        self._num_scored = 0
        self._base: SweepRow | None = None
        self._lock = threading.Lock()

    def without_data(self) -> SweepOutcome:
        """Score every candidate of a grid from its spectra."""
        prepared = self._prepared
        settings = list(all_settings(prepared.axes))
        shards = [shard for one in settings for shard in self._new_shards(prepared.plan_of(one))]
        jobs = self._decompose(shards)
        cross: dict[str, list[float]] = {}
        for report in self._map_shards(measure_spectra, jobs, workers=prepared.workers, stop=self._stop):
            cross.update(report.cross_energies)
        scorer = SpectralScorer(prepared.store, cross)
        self._tell(lambda listener: listener.scoring(len(settings)))
        rows: list[SweepRow] = []
        distances: list[float] = []
        for one in settings:
            self._stop.check()
            plan, started = prepared.plan_of(one), time.monotonic()
            self._align(plan)
            metrics = scorer.score(plan)
            distances.append(metrics.pop("distance") or 0.0)
            rows.append(SweepRow(plan.run_key, one, metrics, seconds=time.monotonic() - started))
        corners = corner_scores([row.metrics["interference"] or 0.0 for row in rows], distances)
        rows = [
            replace(row, metrics={name: {**row.metrics, "l_curve": corner}[name] for name in DATA_FREE_METRICS})
            for row, corner in zip(rows, corners, strict=True)
        ]
        self._num_scored = len(rows)
        self._book.add(rows)
        for place, row in enumerate(rows):
            self._places[row.candidate] = place
            self._keep(row, row.settings, reused=False)
        return self._outcome()

    def with_evaluator(
        self, evaluator: Evaluator, shared: SharedTensors, scratch: str | None, map_candidates: MapCandidates
    ) -> SweepOutcome:
        """Evaluate the candidates that the optimizer proposes."""
        prepared, search = self._prepared, self._prepared.search
        make_job = partial(
            CandidateJob,
            evaluator=evaluator,
            shared=shared,
            spectra=KeptSpectra(prepared.spectra_bytes()),
            workers=prepared.workers,
            scratch=scratch,
        )
        lower = (prepared.objective.rank_by or evaluator.name) in prepared.objective.lower_is_better
        optimizer = prepared.make_optimizer(lower)
        self._score_base(make_job)
        batch = search.parallel if search.optimizer == "optuna" else max(search.parallel, _BATCH)
        trials, is_first = optimizer.ask(1), True
        while trials:
            self._stop.check()
            runs = [prepared.run_of(prepared.plan_of(trial.settings)) for trial in trials]
            for run in runs:
                self._places.setdefault(run.plan.run_key, len(self._places))
            self._decompose([shard for run in runs for shard in self._new_shards(run.plan)])
            if is_first:
                self._tell(lambda listener: listener.scoring(optimizer.total))
            jobs: dict[str, CandidateJob] = {}
            for trial, run in zip(trials, runs, strict=True):
                known = self._book.find(run.plan.run_key)
                if known is not None:
                    self._check_metrics(known)
                    self._keep(known, trial.settings, reused=True)
                else:
                    self._align(run.plan)
                    label = describe(trial.settings)
                    jobs[run.plan.run_key] = make_job(run, dict(trial.settings), label, report=trial.report)

            def on_row(row: SweepRow) -> None:
                self._check_metrics(row)
                self._book.add([row])
                self._num_scored += row.status != "failed"
                self._keep(row, row.settings, reused=False)

            new = map_candidates(list(jobs.values()), parallel=search.parallel, stop=self._stop, on_row=on_row)
            if is_first and new and new[0].status == "failed":
                raise first_failure(new[0], new[0].settings)
            failed = {row.candidate: row for row in new if row.status == "failed"}
            for trial, run in zip(trials, runs, strict=True):
                key = run.plan.run_key
                row = failed.get(key) or self._book.find(key)
                assert row is not None, "every candidate has a row after its evaluation"
                optimizer.tell(trial, row, self._value(row))
            trials, is_first = optimizer.ask(batch), False
        return self._outcome()

    def _score_base(self, make_job: Callable[..., CandidateJob]) -> None:
        if not self._prepared.objective.not_below_base:
            return
        plan = self._prepared.base_plan()
        self._base = self._book.find(plan.run_key)
        if self._base is None:
            job = make_job(self._prepared.run_of(plan), {}, "the base model", report=_ignore_report, shared=None)
            self._base = evaluate_candidate(job, self._stop)
            if self._base.status != "scored":
                raise first_failure(self._base, {})
            self._book.add([self._base])

    def _new_shards(self, plan: Plan) -> list[LayerShard]:
        return shards_to_decompose([plan], self._decomposed)

    def _decompose(self, shards: Sequence[LayerShard]) -> list[ShardJob]:
        """Write the spectra of shards to the store, and return their jobs."""
        numbered = [replace(shard, index=index) for index, shard in enumerate(shards)]
        jobs = self._prepared.run_of(next(iter(self._prepared.known.values()))).jobs(numbered)
        if not jobs:
            return []
        self._tell(lambda listener: listener.decomposing(sum(len(shard.tensors) for shard in shards)))

        def on_tensor(name: str, bytes_read: int) -> None:
            self._tell(lambda listener: listener.tensor_done(name, bytes_read))

        with one_thread():
            self._map_shards(
                decompose_spectra, jobs, workers=self._prepared.workers, stop=self._stop, on_tensor=on_tensor
            )
        return jobs

    def _align(self, plan: Plan) -> None:
        """Write the tables of largest eigenvalues that a plan needs; the spectra are in the store."""
        with one_thread():
            align_layers(self._prepared.run_of(plan), map_in_threads, workers=self._prepared.workers, stop=self._stop)

    def _value(self, row: SweepRow) -> float | None:
        objective = self._prepared.objective
        base = self._base.metrics if self._base is not None else None
        if row.status != "scored" or objective.violations(row.metrics, base):
            return None
        return row.metrics[objective.metric(list(row.metrics))]

    def _check_metrics(self, row: SweepRow) -> None:
        if row.status == "scored":
            check_metric_names(row.metrics, [axis.name for axis in self._prepared.axes])
            self._prepared.objective.metric(list(row.metrics))
            with self._lock:
                others = next((one.metrics for one in self._rows.values() if one.status == "scored"), row.metrics)
            if row.metrics.keys() != others.keys():
                raise EvaluatorError(
                    f"the evaluator returned {', '.join(row.metrics)} for {describe(row.settings)}, and"
                    f" {', '.join(others)} before; expected the same metrics for every candidate"
                )

    def _keep(self, row: SweepRow, settings: Settings, *, reused: bool) -> None:
        row = replace(row, settings=settings)  # a table has the types of Arrow
        with self._lock:
            self._rows.setdefault(row.candidate, row)
            best = self._best()
        label, best_label = describe(row.settings), describe(best.settings) if best is not None else ""
        self._tell(lambda listener: listener.scored(row, label, best, best_label, reused))

    def _best(self) -> SweepRow | None:
        base = self._base.metrics if self._base is not None else None
        return self._prepared.objective.best(self._in_order(), base)

    def _in_order(self) -> list[SweepRow]:
        """Return the rows in the order of the proposals: candidates that run at the same time end in any order."""
        return sorted(self._rows.values(), key=lambda row: self._places[row.candidate])

    def _tell(self, event: Callable[[SweepListener], None]) -> None:
        for listener in self._listeners:
            event(listener)

    def _outcome(self) -> SweepOutcome:
        prepared, objective = self._prepared, self._prepared.objective
        rows = tuple(self._in_order())
        scored = [row for row in rows if row.status == "scored"]
        if not scored:
            raise EvaluatorError(f"no candidate was scored; the last error: {rows[-1].error or 'all were pruned'}")
        metric, best = objective.metric(list(scored[0].metrics)), self._best()
        recipe = prepared.recipe_of(best.settings) if best is not None else None
        recipe_key = None
        if recipe is not None:
            text = yaml.safe_dump(recipe.canonical(), sort_keys=False, allow_unicode=True)
            recipe_key = write_best_recipe(prepared.store, prepared.key, text)
        return SweepOutcome(
            rows=rows,
            best=best,
            base=self._base,
            recipe=recipe,
            metric=metric,
            lower_is_better=metric in objective.lower_is_better,
            num_scored=self._num_scored,
            table_key=sweep_object_key(prepared.key, TABLE_NAME),
            recipe_key=recipe_key,
            warnings=(self._book.note,) if self._book.note else (),
            limits=objective.limits_as_text(self._base.metrics if self._base is not None else None),
        )


def _ignore_report(step: int, value: float) -> None:
    return None
