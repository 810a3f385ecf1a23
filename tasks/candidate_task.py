"""Prefect task that evaluates one candidate of a sweep, in a thread of the process that runs the sweep."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from ..core.cache.sweep_tables import SweepRow
from ..core.coordination.stop import StopSignal
from ..core.sweep.evaluate_candidate import CandidateJob, evaluate_candidate


# NO_CACHE: the table of the sweep is what a resumed sweep reads.
@task(name="evaluate-candidate", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False)
def candidate_task(label: str, job: CandidateJob, stop: StopSignal) -> SweepRow:
    """Return the row of a candidate; a failed evaluation is a row too.

    Parameters
    ----------
    label : its settings, which name the task run
    """
    return evaluate_candidate(job, stop)
