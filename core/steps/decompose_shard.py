"""One shard's decompositions before anything is filtered: for methods that look at the eigenvalues of all layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..cache.alignments import aligned_tensors
from ..cache.reports import DecomposeReport
from ..coordination.claims import POLL_SECONDS, ClaimedElsewhere, ClaimWatcher, claim_key
from ..coordination.devices import hold_device
from ..coordination.stop import StopSignal
from ..merging.tensor_merger import TensorMerger
from ..planning.plan import LayerShard, RunSettings
from ..storage.checkpoints.tensor_reader import TensorReader
from .open_store import open_store


def decompose_shard(
    shard: LayerShard,
    settings: RunSettings,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    *,
    stop: StopSignal | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
    wait: bool = True,
) -> DecomposeReport:
    """Make sure that the spectra of a shard's aligned tensors are in the store; idempotent, as `merge_shard`.

    Where the recipe keeps no spectra, the largest values are all that is left, and merging decomposes again.

    Raises
    ------
    as `merge_shard`
    """
    stop = stop or StopSignal()
    store = open_store(store_uri, storage_options, settings)
    if torch.get_num_threads() != 1:  # as `merge_shard`: the bytes must not depend on the number of workers
        torch.set_num_threads(1)
    # Its own claim: two runs on one store share this work too.
    watcher = ClaimWatcher(store, claim_key(f"{shard.part_key}-spectra"))
    while (claim := watcher.acquire()) is None:
        stop.check()
        if not wait:
            raise ClaimedElsewhere
        time.sleep(POLL_SECONDS)
    with claim, hold_device(settings.device, stop) as device:
        reader = TensorReader(storage_options)
        merger = TensorMerger(replace(settings, device=device), store, reader)
        largest: dict[str, float] = {}
        num_computed = 0
        for tensor in aligned_tensors(shard):
            stop.check()
            bytes_before = reader.bytes_read
            values, origin = merger.largest_values(tensor)
            largest.update(values)
            num_computed += origin == "computed"
            if on_tensor is not None:
                on_tensor(tensor.name, reader.bytes_read - bytes_before)
        return DecomposeReport(shard.index, largest, num_computed, reader.bytes_read, tuple(merger.notes))
