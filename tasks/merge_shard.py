"""One layer shard as a Prefect task: the unit of fan-out and retry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..core.cache.reports import ShardReport
from ..core.coordination.claims import ClaimedElsewhere
from ..core.coordination.stop import StopSignal
from ..core.planning.plan import RunSettings
from ..core.planning.plan_json import shard_from_json
from ..core.steps import merge_shard as step
from .shard_task import shard_task


@shard_task("merge-shard", "{label}")
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
