"""Prefect tasks that compute one layer shard: the unit of fan-out, retry, and resume.

They differ only in the step that they run and in their name. A step looks for its own objects in the store, so
that running it twice is harmless.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from ..core.coordination.claims import ClaimedElsewhere
from ..core.coordination.stop import StopSignal
from ..core.errors import EigenmergeError
from ..core.run import ShardJob
from ..core.steps.decompose_shard import decompose_shard
from ..core.steps.head_start import HeadStart
from ..core.steps.merge_shard import merge_shard
from ..core.steps.shard_steps import OnTensor, ShardStep
from ..core.sweep.spectra_steps import decompose_spectra, measure_spectra

ReportT = TypeVar("ReportT")


def shard_task(step: ShardStep[ReportT], name: str, run_name: str) -> Task[..., ReportT | None]:
    """Return the Prefect task that runs `step` on one job. The task returns None while another run has the shard.

    NO_CACHE: a cache key of Prefect that points at an object returns it even when the object is gone.

    Parameters
    ----------
    run_name : template of the name of a task run; may contain {label}
    """

    @task(
        name=name,
        task_run_name=run_name,
        retries=2,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run_step(
        label: str,
        job: ShardJob,
        stop: StopSignal | None = None,
        on_tensor: OnTensor | None = None,
        wait: bool = True,
        early: HeadStart | None = None,
    ) -> ReportT | None:
        if early is not None and (report := early.take(job)) is not None:
            return cast("ReportT", report)  # of the step "merge_shard"
        try:
            return step(job, stop=stop, on_tensor=on_tensor, wait=wait)
        except ClaimedElsewhere:
            return None

    return run_step


def worth_retrying(_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failed task may succeed later: not where the user has to correct something.

    Storage errors that can pass have been retried by the store already.
    """
    try:
        state.result(raise_on_failure=True)
    except EigenmergeError:
        return False
    except Exception:
        return True
    return False


SHARD_TASKS: dict[ShardStep[Any], Task[..., Any]] = {
    merge_shard: shard_task(merge_shard, "merge-shard", "{label}"),
    decompose_shard: shard_task(decompose_shard, "decompose-shard", "decompose {label}"),
    decompose_spectra: shard_task(decompose_spectra, "decompose-spectra", "decompose {label}"),
    measure_spectra: shard_task(measure_spectra, "measure-spectra", "measure {label}"),
}
