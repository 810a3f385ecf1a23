"""Evaluate the candidates of a sweep as Prefect tasks, and without Prefect once its server does not answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from prefect.futures import PrefectFuture
from prefect.utilities.annotations import quote

from ..core.cache.sweep_tables import SweepRow
from ..core.coordination.stop import StopSignal
from ..core.sweep.evaluate_candidate import CandidateJob, evaluate_in_threads
from ..tasks.candidate_task import candidate_task
from ..tasks.runners.runner import make_runner
from .server_health import ServerHealth, is_failure_of_prefect


@dataclass(frozen=True, slots=True)
class PrefectCandidates:
    """`core.sweep.evaluate_candidate.MapCandidates` with one Prefect task for each candidate."""

    server: ServerHealth = field(default_factory=ServerHealth)

    def __call__(
        self, jobs: Sequence[CandidateJob], *, parallel: int, stop: StopSignal, on_row: Callable[[SweepRow], None]
    ) -> list[SweepRow]:
        """Return one row per job, in the order of `jobs`."""
        rows: dict[str, SweepRow] = {}

        def keep(row: SweepRow) -> None:
            rows[row.candidate] = row
            on_row(row)

        left = list(jobs)
        if self.server.answers:
            try:
                self._submit(jobs, parallel, stop, keep)
            except Exception as error:
                if stop.is_set or not is_failure_of_prefect(error):
                    raise
                self.server.failed(error)
            left = [job for job in jobs if job.run.plan.run_key not in rows]
        if left:
            evaluate_in_threads(left, parallel=parallel, stop=stop, on_row=keep)
        return [rows[job.run.plan.run_key] for job in jobs]

    @staticmethod
    def _submit(
        jobs: Sequence[CandidateJob], parallel: int, stop: StopSignal, keep: Callable[[SweepRow], None]
    ) -> None:
        done: SimpleQueue[PrefectFuture[SweepRow]] = SimpleQueue()
        with make_runner("threads", workers=parallel) as runner:
            for job in jobs:
                parameters = {"label": job.label, "job": quote(job), "stop": quote(stop)}
                runner.submit(candidate_task, parameters, 0).add_done_callback(done.put)
            for _ in jobs:
                keep(done.get().result())
