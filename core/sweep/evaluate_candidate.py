"""Evaluate one candidate: what a Prefect task of a sweep does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ..cache.spectra.kept_spectra import KeptSpectra
from ..cache.sweep_tables import SweepRow
from ..coordination.stop import StopSignal
from ..errors import EigenmergeError, EvaluatorError, InterruptedRunError, one_line
from ..recipe.settings import Scalar
from ..run import Run
from .candidate import Candidate
from .evaluators.evaluator import Evaluator
from .grid import describe
from .optimizer import Pruned
from .shared_tensors import SharedTensors

_LONGEST_ERROR = 300


@dataclass(frozen=True, slots=True)
class CandidateJob:
    """One candidate to evaluate.

    label : its settings as text
    report : receives intermediate scores, and may raise Pruned
    """

    run: Run
    settings: dict[str, Scalar]
    label: str
    evaluator: Evaluator
    report: Callable[[int, float], None]
    shared: SharedTensors | None = None
    spectra: KeptSpectra | None = None
    workers: int = 1
    scratch: str | None = None


class MapCandidates(Protocol):
    """Evaluates candidates, several at the same time."""

    def __call__(
        self,
        jobs: Sequence[CandidateJob],
        *,
        parallel: int,
        stop: StopSignal,
        on_row: Callable[[SweepRow], None],
    ) -> list[SweepRow]:
        """Return one row per job, in the order of `jobs`; `on_row` is called with each as soon as it is there."""
        ...


def evaluate_candidate(job: CandidateJob, stop: StopSignal) -> SweepRow:
    """Return the row of a candidate: scored, pruned, or failed with the error of its evaluator.

    Raises
    ------
    InterruptedRunError : `stop` was set
    """
    stop.check()
    started = time.monotonic()
    steps: list[tuple[int, float]] = []

    def report(step: int, value: float) -> None:
        stop.check()
        steps.append((step, value))
        job.report(step, value)

    candidate = Candidate(
        job.run,
        job.settings,
        label=job.label,
        workers=job.workers,
        scratch=job.scratch,
        shared=job.shared,
        spectra=job.spectra,
        report=report,
        stop=stop,
    )

    def row(**fields: Any) -> SweepRow:
        seconds = time.monotonic() - started
        return SweepRow(job.run.plan.run_key, job.settings, seconds=seconds, steps=tuple(steps), **fields)

    try:
        return row(metrics=job.evaluator(candidate))
    except Pruned:
        return row(status="pruned")
    except InterruptedRunError:
        raise
    except EigenmergeError as error:
        return row(status="failed", error=one_line(error)[:_LONGEST_ERROR])
    except Exception as error:
        message = f"{job.evaluator.name} raised {type(error).__name__}: {one_line(error)}"
        return row(status="failed", error=message[:_LONGEST_ERROR])
    finally:
        candidate.close()


def evaluate_in_threads(
    jobs: Sequence[CandidateJob], *, parallel: int, stop: StopSignal, on_row: Callable[[SweepRow], None]
) -> list[SweepRow]:
    """Evaluate candidates in this process. An instance of `MapCandidates`."""

    def evaluate(job: CandidateJob) -> SweepRow:
        row = evaluate_candidate(job, stop)
        on_row(row)
        return row

    if parallel == 1 or len(jobs) == 1:  # in this thread: an evaluator may depend on it
        return list(map(evaluate, jobs))
    with ThreadPoolExecutor(parallel, thread_name_prefix="candidate") as pool:
        return list(pool.map(evaluate, jobs))


def first_failure(row: SweepRow, settings: Mapping[str, Scalar]) -> EvaluatorError:
    """Return the error that ends a sweep whose first candidate failed: the others would fail in the same way."""
    what = f"the first candidate, {describe(settings)}" if settings else "the base model"
    return EvaluatorError(f"{what}: {row.error or row.status}; no other candidate was tried")
