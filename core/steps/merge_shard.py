"""Merge one shard: find its part in the store, or merge its tensors one by one and write the part."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace

from ..cache.parts import find_part, write_record
from ..cache.reports import ShardReport
from ..cache.spectra.table import write_shard_table
from ..coordination.claim_keys import claim_key
from ..coordination.claims import claimed_shard
from ..coordination.devices import hold_device
from ..coordination.stop import StopSignal
from ..coordination.threads import use_one_thread
from ..merging.tensor_merger import TensorMerger
from ..planning.shards import output_entries, output_header
from ..run import ShardJob
from ..storage.checkpoints.tensor_reader import TensorReader
from .shard_steps import OnTensor


def merge_shard(
    job: ShardJob,
    *,
    stop: StopSignal | None = None,
    on_tensor: OnTensor | None = None,
    wait: bool = True,
) -> ShardReport:
    """Merge one shard. Idempotent; several processes may run it for the same shard at the same time.

    Peak memory is the projection of the plan: the base, two experts and the work space of one tensor.

    Parameters
    ----------
    stop : checked between two tensors; an unfinished part is discarded
    on_tensor : called after each tensor with its name and the bytes read for it
    wait : whether to wait for another run that merges the same shard; False raises ClaimedElsewhere instead

    Raises
    ------
    ClaimedElsewhere : another run merges this shard, and `wait` is false
    InterruptedRunError : `stop` was set
    NonFiniteError : an expert holds NaN or Inf and `job.settings.allow_nonfinite` is false
    StoreError : the store cannot be read or written
    """
    stop = stop or StopSignal()
    use_one_thread()
    reason: str | None = None  # why a part that exists is made again

    def find() -> ShardReport | None:
        nonlocal reason
        found, reason = find_part(job.store, job.shard)
        return found

    with claimed_shard(job.store, claim_key(job.shard.part_key), stop=stop, wait=wait, find=find) as found:
        if found is not None:
            return found
        with hold_device(job.settings.device, stop) as device:
            return _write_part(job, device, stop, on_tensor, (reason,) if reason else ())


def _write_part(
    job: ShardJob, device: str, stop: StopSignal, on_tensor: OnTensor | None, notes: tuple[str, ...]
) -> ShardReport:
    """Merge the tensors, and write the part, the table of its spectra, and last the record that commits the part."""
    started = time.monotonic()
    shard, store = job.shard, job.store
    reader = TensorReader(job.storage_options)
    merger = TensorMerger(replace(job.settings, device=device), store, reader, measures=True)
    entries = [entry for tensor in shard.tensors for entry in output_entries(tensor)]
    header = output_header(entries)
    reports = []
    crc32 = 0
    with store.open_write(shard.part_key) as writer:

        def write(data: memoryview) -> None:
            nonlocal crc32
            writer.write(data)
            crc32 = zlib.crc32(data, crc32)

        writer.write(header)
        for tensor in shard.tensors:
            stop.check()
            bytes_before = reader.bytes_read
            reports.append(merger.merge_to(tensor, write))
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
        crc32=crc32,
    )
    write_record(store, report)
    return report
