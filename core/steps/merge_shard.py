"""One shard: find its part in the store, or merge its tensors one by one and leave the part there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..cache.parts import find_part, write_record
from ..cache.reports import ShardReport
from ..cache.spectra.table import write_shard_table
from ..coordination.claims import POLL_SECONDS, ClaimedElsewhere, ClaimWatcher, claim_key
from ..coordination.devices import hold_device
from ..coordination.stop import StopSignal
from ..formats.safetensors_header import build_header
from ..merging.tensor_merger import TensorMerger
from ..planning.plan import LayerShard, RunSettings
from ..planning.shards import output_entries
from ..storage.checkpoints.tensor_reader import TensorReader
from ..storage.store import Store
from .open_store import open_store


def merge_shard(
    shard: LayerShard,
    settings: RunSettings,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    *,
    stop: StopSignal | None = None,
    on_tensor: Callable[[str, int], None] | None = None,
    wait: bool = True,
) -> ShardReport:
    """Merge one shard; idempotent, and safe to run in several places at once.

    Peak memory is what the plan projected: base, two experts and the work space of one tensor. On a CPU it computes
    with one thread, so that the same inputs give the same bytes wherever it runs.

    Parameters
    ----------
    stop : looked at between two tensors; the part is then dropped whole
    on_tensor : called with the name and the bytes read after each tensor
    wait : for another run that is at this shard; with False ClaimedElsewhere is raised, so that other shards come first

    Raises
    ------
    InterruptedRunError : `stop` was set
    NonFiniteError : an expert holds NaN or Inf and `settings.allow_nonfinite` is false
    StoreError : the store refused or stayed unreachable
    """
    stop = stop or StopSignal()
    store = open_store(store_uri, storage_options, settings)
    # Two threads add up in another order than one: with one, the bytes do not depend on how many workers there are.
    # It is also the quicker way to use the cores, as long as there are as many shards as cores.
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    watcher = ClaimWatcher(store, claim_key(shard.part_key))
    while True:
        stop.check()
        found, reason = find_part(store, shard)
        if found is not None:
            return found
        claim = watcher.acquire()
        if claim is not None:
            break
        if not wait:
            raise ClaimedElsewhere
        time.sleep(POLL_SECONDS)
    with claim, hold_device(settings.device, stop) as device:
        notes = (reason,) if reason else ()
        return _make_part(shard, replace(settings, device=device), store, storage_options, stop, on_tensor, notes)


def _make_part(
    shard: LayerShard,
    settings: RunSettings,
    store: Store,
    storage_options: Mapping[str, Any] | None,
    stop: StopSignal,
    on_tensor: Callable[[str, int], None] | None,
    notes: tuple[str, ...],
) -> ShardReport:
    started = time.monotonic()
    reader = TensorReader(storage_options)
    merger = TensorMerger(settings, store, reader)
    entries = [entry for tensor in shard.tensors for entry in output_entries(tensor)]
    header = build_header({entry.name: (entry.dtype, entry.shape) for entry in entries}, {"format": "pt"})
    reports = []
    with store.open_write(shard.part_key) as writer:
        writer.write(header)
        for tensor in shard.tensors:
            stop.check()
            bytes_before = reader.bytes_read
            data, report = merger.merge(tensor)
            writer.write(data)
            reports.append(report)
            if on_tensor is not None:
                on_tensor(tensor.name, reader.bytes_read - bytes_before)
    write_shard_table(store, shard.part_key, merger.spectra_rows)
    info = store.info(shard.part_key)
    report = ShardReport(
        index=shard.index,
        part_key=shard.part_key,
        num_bytes=writer.num_bytes,
        header_bytes=len(header),
        sha256=writer.sha256,
        etag=info.etag,
        seconds=time.monotonic() - started,
        bytes_read=reader.bytes_read,
        kept_bytes_read=merger.kept_bytes_read,
        tensors=tuple(reports),
        notes=notes + tuple(merger.notes),
    )
    write_record(store, report)
    return report
