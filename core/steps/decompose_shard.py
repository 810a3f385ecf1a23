"""Decompose tensors of one shard before any filter is applied: for alignment of all layers, and for sweeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..cache.alignments import aligned_tensors
from ..cache.reports import DecomposeReport
from ..coordination.claim_keys import spectra_claim_key
from ..coordination.claims import claimed_shard
from ..coordination.devices import hold_device
from ..coordination.stop import StopSignal
from ..coordination.threads import use_one_thread
from ..merging.tensor_merger import TensorMerger
from ..planning.plan import TensorPlan
from ..run import ShardJob
from ..storage.checkpoints.tensor_reader import TensorReader
from .shard_steps import OnTensor


def decompose_shard(
    job: ShardJob,
    *,
    stop: StopSignal | None = None,
    on_tensor: OnTensor | None = None,
    wait: bool = True,
) -> DecomposeReport:
    """Write the spectra of a shard's aligned tensors to the store, and return their largest values. Idempotent.

    Where the recipe keeps no spectra, only the largest values remain, and the merge decomposes again.

    Raises
    ------
    as `merge_shard`
    """
    return decompose_tensors(job, aligned_tensors(job.shard), stop=stop, on_tensor=on_tensor, wait=wait)


def decompose_tensors(
    job: ShardJob,
    tensors: Iterable[TensorPlan],
    *,
    stop: StopSignal | None = None,
    on_tensor: OnTensor | None = None,
    wait: bool = True,
) -> DecomposeReport:
    """As `decompose_shard`, for these tensors of the shard, which have spectra."""
    stop = stop or StopSignal()
    use_one_thread()
    # The claim differs from that of the part: two runs on one store share this work too.
    claim = claimed_shard(job.store, spectra_claim_key(job.shard.part_key), stop=stop, wait=wait)
    with claim, hold_device(job.settings.device, stop) as device:
        reader = TensorReader(job.storage_options)
        merger = TensorMerger(replace(job.settings, device=device), job.store, reader, measures=True)
        largest: dict[str, float] = {}
        num_computed = 0
        for tensor in tensors:
            stop.check()
            bytes_before = reader.bytes_read
            values, origin = merger.largest_values(tensor)
            largest.update(values)
            num_computed += origin == "computed"
            if on_tensor is not None:
                on_tensor(tensor.name, reader.bytes_read - bytes_before)
        return DecomposeReport(job.shard.index, largest, num_computed, reader.bytes_read, tuple(merger.notes))
