"""One layer shard as a Prefect task: the unit of fan-out and retry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from ..core.errors import EigenmergeError
from ..core.planning.plan import LayerShard, RunSettings
from ..core.steps import merge_shard as step
from ..core.steps.reports import ShardReport
from ..core.steps.stop import StopSignal


def _worth_retrying(_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Storage has done its own retries by then, and what the user must cure does not pass by waiting."""
    try:
        state.result(raise_on_failure=True)
    except EigenmergeError:
        return False
    except Exception:
        return True
    return False


# NO_CACHE: a Prefect cache key that points at an object returns it even when the object is gone. The step looks for its
# own part in the store, so running it twice is harmless.
@task(
    name="merge-shard",
    task_run_name="{label}",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def merge_shard(
    label: str,
    shard: LayerShard,
    settings: RunSettings,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    stop: StopSignal | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
) -> ShardReport:
    """Merge one shard and leave its part in the store; see `core.steps.merge_shard`."""
    return step.merge_shard(shard, settings, store_uri, storage_options, stop=stop, on_tensor=on_tensor)
