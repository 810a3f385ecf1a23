"""One shard's decompositions as a Prefect task, before the merge of methods that align layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..core.cache.reports import DecomposeReport
from ..core.coordination.claims import ClaimedElsewhere
from ..core.coordination.stop import StopSignal
from ..core.planning.plan import RunSettings
from ..core.planning.plan_json import shard_from_json
from ..core.steps import decompose_shard as step
from .shard_task import shard_task


@shard_task("decompose-shard", "decompose {label}")
def decompose_shard(
    label: str,
    shard: str,
    settings: str,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    stop: StopSignal | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
    wait: bool = True,
) -> DecomposeReport | None:
    """Leave the spectra of one shard's aligned tensors in the store; see there. None: another run is at it."""
    try:
        return step.decompose_shard(
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
