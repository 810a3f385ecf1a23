"""Assemble the checkpoint: join parts to files, write the side files, and commit with the last object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cache.reports import ShardReport
from ..cache.run_folder import TABLE_NAME, run_object_key
from ..cache.spectra.table import write_spectra_table
from ..cache.spectra.table_file import read_run_table
from ..coordination.claims import Claim
from ..coordination.stop import StopSignal
from ..errors import CheckpointError, CorruptObjectError, DestinationError, ObjectNotFoundError, RecipeError
from ..formats.digest import hash_bytes
from ..formats.file_names import MANIFEST_NAME, MODEL_CARD_NAME, REPORT_NAME
from ..output.commit import write_index
from ..output.destination import Destination, clear_for_writing, take_destination
from ..output.file_hashes import FileHashes, file_header, part_tensors
from ..output.input_cards import read_input_cards
from ..output.manifest import ManifestWriter
from ..output.model_card import build_model_card
from ..output.read_manifest import Manifest, manifest_of
from ..planning.plan import SideFile
from ..run import Run
from ..storage.assembly.assemble_file import assemble_file
from ..storage.checkpoints.file_version import read_unchanged
from ..storage.store import Store

if TYPE_CHECKING:
    from .reading.run_records import RunRecords


@dataclass(frozen=True, slots=True)
class Assembled:
    """The outcome of assembling.

    bytes_through : bytes of weights that passed through this process, rather than being copied by the store
    """

    bytes_through: int = 0
    warnings: tuple[str, ...] = ()


def assemble(
    run: Run,
    reports: Sequence[ShardReport],
    destination: Destination,
    *,
    stop: StopSignal | None = None,
    file_hashes: FileHashes | None = None,
) -> Assembled:
    """Write weight files, config and tokenizer files, model card, report and manifest, and last the index.

    Weights do not pass through this process where the store can copy on its own side. After a kill, the same run writes
    all files again: that costs a copy, not a computation.

    Parameters
    ----------
    reports : one per shard, in the order of the plan
    stop : checked while another run writes to the same destination, and between two files
    file_hashes : hashes that were computed while the parts were made

    Raises
    ------
    DestinationError : another recipe wrote to the destination after it was prepared
    DamagedPartError : a part has other bytes than those that were computed; the marker remains
    InterruptedRunError : `stop` was set; the marker of an incomplete checkpoint remains, and the same run can take over
    CheckpointError : a tokenizer file or another small file of a model has changed since the plan; the marker remains
    StoreError : a place cannot be read or written; the marker remains
    """
    claim = take_destination(destination, run.plan, stop)
    if claim is None:
        return Assembled(warnings=(f"{destination.uri}: another run has written the same result there",))
    try:
        through, warnings = _write_checkpoint(run, reports, destination, claim, stop, file_hashes)
    except BaseException:
        claim.abandon()
        raise
    claim.release()  # removes the marker
    return Assembled(through, warnings)


def _write_checkpoint(
    run: Run,
    reports: Sequence[ShardReport],
    destination: Destination,
    claim: Claim,
    stop: StopSignal | None,
    file_hashes: FileHashes | None,
) -> tuple[int, tuple[str, ...]]:
    """Write everything and return the bytes of weights that passed through this process, and warnings."""
    plan, target = run.plan, destination.store
    warnings: tuple[str, ...] = ()
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
        tensors = [part_tensors(plan, report) for report in parts]
        written = assemble_file(target, file.name, header, run.store, ranges, sha256=known, tensors=tensors)
        hashes[file.name] = written.sha256
        through += written.bytes_transferred
    for side in plan.side_files:
        hashes[side.name] = _write(target, side.name, _content(side, run.storage_options))
    card = build_model_card(plan, reports, read_input_cards(plan, run.storage_options), destination.results)
    hashes[MODEL_CARD_NAME] = _write(target, MODEL_CARD_NAME, card)
    manifest = ManifestWriter(plan, reports)
    if destination.report:
        try:
            found = manifest_of(manifest.content(hashes), manifest.encode(hashes), MANIFEST_NAME)
            hashes[REPORT_NAME] = _write(target, REPORT_NAME, _report(run, found))
        # A method that a package has changed while it merged, or more numbers than a reader accepts.
        except (RecipeError, CheckpointError) as error:
            warnings = (f"{REPORT_NAME} is not written: {error}",)
    _write(target, MANIFEST_NAME, manifest.encode(hashes))
    if not claim.check():
        raise DestinationError(
            f"{target.display('')}: another merge took over this destination while this process was suspended; the"
            " files there may come from two merges: run one of the merges again with --overwrite"
        )
    write_index(target, plan)
    return through, warnings


def _report(run: Run, manifest: Manifest) -> bytes:
    """Return the page on the merge; it depends only on the manifest and on the table of the spectra."""
    from .reporting.page import report_page
    from .reporting.report import make_report

    return report_page(make_report(manifest, _records(run))).encode()


def _records(run: Run) -> RunRecords:
    """Return the spectra of the run. A damaged table is written again, so that damage does not change the page."""
    from .reading.run_records import RunRecords

    place, key = run.store.display(""), run_object_key(run.plan.run_key, TABLE_NAME)
    for is_last in (False, True):
        try:
            return RunRecords(place, {row.name: row for row in read_run_table(run.store, key)})
        except ObjectNotFoundError:
            break
        except CorruptObjectError:
            if is_last:
                raise
            write_spectra_table(run)
    return RunRecords(place, missing="the run keeps no spectra")


def _content(side: SideFile, storage_options: Mapping[str, Any] | None) -> bytes:
    if side.content is not None:
        return side.content
    assert side.source_uri is not None
    return read_unchanged(side.source_uri, side.version, storage_options)


def _write(target: Store, name: str, data: bytes) -> str:
    target.write(name, data)
    return hash_bytes(data)
