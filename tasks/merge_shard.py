"""One layer shard as a Prefect task: the unit of fan-out and retry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from ..core.planning.plan import RunSettings
from ..core.planning.plan_json import shard_from_json
from ..core.steps import merge_shard as step
from ..core.steps.claims import ClaimedElsewhere
from ..core.steps.reports import ShardReport
from ..core.steps.stop import StopSignal
from .retrying import worth_retrying


# NO_CACHE: a Prefect cache key that points at an object returns it even when the object is gone. The step looks for its
# own part in the store, so running it twice is harmless.
@task(
    name="merge-shard",
    task_run_name="{label}",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def merge_shard(
    label: str,
    shard: str,
    settings: str,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    stop: StopSignal | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
    wait: bool = True,
) -> ShardReport | None:
    """Merge one shard and leave its part in the store; see `core.steps.merge_shard`. None: another run is at it.

    `shard` and `settings` come as JSON: Prefect and Dask both walk the fields of whatever else they are given.
    """
    try:
        return step.merge_shard(
            shard_from_json(json.loads(shard)),
            RunSettings(**json.loads(settings)),
            store_uri,
            storage_options,
            stop=stop,
            on_tensor=on_tensor,
            wait=wait,
        )
    except ClaimedElsewhere:
        return None
