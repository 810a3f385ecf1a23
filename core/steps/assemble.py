"""The reduce: parts become the files of a checkpoint, and the last object written is the commit."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..cache.reports import DecomposeReport, ShardReport
from ..cache.result import MergeResult, count_shards, worst_truncation
from ..coordination.claims import Claim
from ..coordination.stop import StopSignal
from ..errors import DestinationError
from ..formats.digest import hash_bytes
from ..formats.file_names import INDEX_NAME, MANIFEST_NAME, MODEL_CARD_NAME
from ..output.destination import Destination, clear_for_writing, take_destination
from ..output.file_hashes import FileHashes, file_entries, file_header
from ..output.manifest import build_manifest
from ..output.model_card import build_model_card
from ..planning.plan import Plan, SideFile
from ..storage.assembly.assemble_file import assemble_file
from ..storage.store import Store, locate_object
from .open_store import store_warnings


def assemble(
    plan: Plan,
    reports: Sequence[ShardReport],
    destination: Destination,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    *,
    started: float,
    decomposed: Sequence[DecomposeReport] = (),
    stop: StopSignal | None = None,
    file_hashes: FileHashes | None = None,
) -> MergeResult:
    """Write weight files, config and tokenizer files, model card and manifest, and last the index.

    The weights do not pass through this process where the store can copy on its own side. A run that is killed here and
    started again writes the files again: they cost a copy, not a computation.

    Parameters
    ----------
    reports : one per shard, in the order of the plan
    started : of the whole run, on `time.monotonic`'s clock
    decomposed : what was decomposed before the merge began, where layers are aligned
    file_hashes : what was hashed while the parts were made
    stop : looked at while another run writes to the same destination, and between two files

    Raises
    ------
    DestinationError : another recipe's merge came there since the destination was prepared
    InterruptedRunError : `stop` was set; the marker stays there, and the same run takes the place over
    StoreError : a place that cannot be read or written; the marker that the checkpoint is not whole stays there
    """
    claim = take_destination(destination, plan, stop)
    through = 0
    if claim is not None:
        try:
            through = _write_checkpoint(
                plan, reports, destination.store, store_uri, storage_options, claim, stop, file_hashes
            )
        except BaseException:
            claim.abandon()
            raise
        claim.release()  # takes the marker away
    worst = worst_truncation(reports)
    return MergeResult(
        destination=destination.uri,
        run_key=plan.run_key,
        files=tuple(file.name for file in plan.files),
        num_tensors=plan.num_tensors,
        num_experts=len(plan.experts),
        method=str(plan.recipe.get("merge_method")),
        bytes_written=plan.bytes_written,
        bytes_through_reduce=through,
        seconds=time.monotonic() - started,
        warnings=plan.warnings
        + store_warnings(plan.settings)
        + (() if claim is not None else (f"{destination.uri}: another run has written the same result there",))
        + tuple(note for report in reports for note in _notes(report)),
        truncation_error=worst.truncation_error if worst else None,
        truncated_tensor=worst.name if worst else None,
        **count_shards(reports, decomposed),
    )


def _write_checkpoint(
    plan: Plan,
    reports: Sequence[ShardReport],
    target: Store,
    store_uri: str,
    storage_options: Mapping[str, Any] | None,
    claim: Claim,
    stop: StopSignal | None,
    file_hashes: FileHashes | None,
) -> int:
    """Everything but the taking away of the marker; the bytes of weights that passed through here."""
    store = Store(store_uri, storage_options)
    hashes: dict[str, str | None] = {}
    through = 0
    clear_for_writing(target, plan)
    for file in plan.files:
        if stop is not None:
            stop.check()
        header = file_header(plan, file)
        parts = [reports[index] for index in file.shards]
        ranges = [(report.part_key, report.header_bytes, report.num_bytes) for report in parts]
        known = file_hashes.result(file) if file_hashes is not None else None
        written = assemble_file(target, file.name, header, store, ranges, sha256=known)
        hashes[file.name] = written.sha256
        through += written.bytes_transferred
    for side in plan.side_files:
        hashes[side.name] = _write(target, side.name, _content(side, storage_options))
    hashes[MODEL_CARD_NAME] = _write(target, MODEL_CARD_NAME, build_model_card(plan, reports))
    _write(target, MANIFEST_NAME, build_manifest(plan, reports, hashes))
    if not claim.check():
        raise DestinationError(
            f"{target.display('')}: another merge has taken this destination over while this one stood still; its files"
            " may be mixed: run one of the two again with --overwrite"
        )
    if len(plan.files) > 1:
        _write(target, INDEX_NAME, _index(plan))
    return through


def _index(plan: Plan) -> bytes:
    weight_map = {entry.name: file.name for file in plan.files for entry in file_entries(plan, file)}
    total = sum(shard.bytes_written for shard in plan.shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def _content(side: SideFile, storage_options: Mapping[str, Any] | None) -> bytes:
    if side.content is not None:
        return side.content
    assert side.source_uri is not None
    source, key = locate_object(side.source_uri, storage_options)
    return source.read(key)


def _write(target: Store, name: str, data: bytes) -> str:
    target.write(name, data)
    return hash_bytes(data)


def _notes(report: ShardReport) -> list[str]:
    found = [] if report.reused else list(report.notes)
    return found + [f"{tensor.name}: {note}" for tensor in report.tensors for note in tensor.notes]
