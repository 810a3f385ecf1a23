"""Decide whether a destination may be written, hold it for one run, and clear what another merge left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ..coordination.claims import POLL_SECONDS, Claim, ClaimWatcher
from ..coordination.stop import StopSignal
from ..errors import CheckpointError, CorruptObjectError, DestinationError, ObjectNotFoundError, StoreError
from ..formats.bounded_json import parse_json_object
from ..formats.file_names import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    REPORT_NAME,
)
from ..planning.plan import Plan
from ..storage.store import Store
from .card_metadata import Results
from .completeness import find_problem
from .owned_files import check_files_are_owned, owned_names, planned_names
from .read_manifest import LONGEST_MANIFEST_BYTES, MOST_MANIFEST_VALUES
from .separate_places import check_inputs_are_elsewhere, check_store_is_elsewhere

_PROBE_PREFIX = ".eigenmerge-probe-"

# Removed although the merge writes them again: a kill must not leave those of another merge beside its weights. The
# report is removed also where the merge writes none.
_REMOVED_FIRST = frozenset({INDEX_NAME, MANIFEST_NAME, CONFIG_NAME, ADAPTER_CONFIG_NAME, REPORT_NAME})


@dataclass(frozen=True, slots=True)
class Destination:
    """A checked destination.

    uri : as the user wrote it
    overwrite : write even if the destination is no longer empty
    is_complete : it has the complete result of the plan already, and nothing is to be done
    report : write the report on the merge as well
    results : of the merged model, for its card
    """

    uri: str
    store: Store
    overwrite: bool = False
    is_complete: bool = False
    report: bool = True
    results: Results | None = None


def prepare_destination(
    plan: Plan,
    uri: str,
    store: Store,
    *,
    overwrite: bool,
    run_store: Store | None = None,
    report: bool = True,
    results: Results | None = None,
) -> Destination:
    """Check that the destination may be written, before any weight is read. Leaves nothing there.

    A destination with an unfinished run of the same plan is accepted: the run resumes. One with the complete result of
    the plan is accepted too: a queue or a retry loop may run a command twice.

    Parameters
    ----------
    uri : address for messages, as the user wrote it
    store : the place at `uri`
    run_store : the store of the run, which must be a separate place
    report : write the report on the merge as well
    results : of the merged model, for its card

    Raises
    ------
    DestinationError : the destination is one of the inputs, or in the store; it is not empty, or was changed after the
        merge; with `overwrite`, it has files in the way that Eigenmerge did not write
    StoreError : it cannot be written
    """
    check_inputs_are_elsewhere(plan, uri, store)
    if run_store is not None:
        check_store_is_elsewhere(plan, uri, store, run_store)
    present = _objects(store)
    if overwrite:
        check_files_are_owned(store, uri, present, plan)
    elif present and _run_key_in(store, MARKER_NAME) != plan.run_key:
        if MARKER_NAME in present or _run_key_in(store, MANIFEST_NAME) != plan.run_key:
            raise DestinationError(_not_empty(uri, store, present))
        problem = find_problem(store, plan, present)
        if problem is not None:
            raise DestinationError(_damaged(uri, problem))
        return Destination(uri, store, is_complete=True)
    return Destination(uri, store.with_probed_writes(_PROBE_PREFIX), overwrite, report=report, results=results)


def take_destination(destination: Destination, plan: Plan, stop: StopSignal | None = None) -> Claim | None:
    """Return the claim to write the destination, or None if another run has just written the same result.

    One run at a time has the claim, so files of two merges never mix. Its object is the marker of an incomplete
    checkpoint and names the plan. This waits for an active run of the same recipe, and takes over after a killed one.

    Raises
    ------
    DestinationError : another recipe wrote to the destination after `prepare_destination`
    InterruptedRunError : `stop` was set while waiting
    """
    store, uri = destination.store, destination.uri
    present = _objects(store)
    owned = check_files_are_owned(store, uri, present, plan) if destination.overwrite else owned_names(store, present)
    written = sorted((owned | planned_names(plan)) - {MARKER_NAME})
    watcher = ClaimWatcher(store, MARKER_NAME, {"run_key": plan.run_key, "files": written})
    waited = False
    while True:
        if stop is not None:
            stop.check()
        marked = _run_key_in(store, MARKER_NAME)
        if marked is None and not destination.overwrite:
            present = _objects(store)
            if MARKER_NAME not in present and _is_finished(store, plan, present):
                return None
            if present and MARKER_NAME not in present:
                raise DestinationError(_not_empty(uri, store, present))
        ours = marked in (None, plan.run_key)
        if not ours and not destination.overwrite:
            raise DestinationError(
                f"{uri}: another recipe's merge is being written there; choose another destination (everything that is"
                " computed is reused), or pass --overwrite after the other merge has ended"
            )
        claim = watcher.acquire()
        if claim is not None:
            # The run that this one waited for may have finished between the check above and the claim.
            if waited and not destination.overwrite and _is_finished(store, plan, _objects(store)):
                claim.release()
                return None
            return claim
        waited = True
        if not ours and watcher.has_moved:
            raise DestinationError(f"{uri}: another recipe's merge is being written there; choose another destination")
        time.sleep(POLL_SECONDS)


def is_finished(store: Store, plan: Plan) -> bool:
    """Return whether the complete result of a plan is in a destination."""
    present = _objects(store)
    return MARKER_NAME not in present and _is_finished(store, plan, present)


def clear_for_writing(store: Store, plan: Plan) -> None:
    """Remove what another merge of Eigenmerge left, its index first, so that no index refers to files of two merges.

    Call it while the claim is held: its object lists the files that are ours. What killed processes left of unfinished
    files and uploads is removed too.
    """
    present = [info.key for info in store.list("")]
    owned, planned = owned_names(store, present), planned_names(plan)
    kept = {MARKER_NAME, *(file.name for file in plan.files)}
    if _run_key_in(store, MANIFEST_NAME) == plan.run_key:
        # The same result is there: each file is replaced by an equal one, so a kill leaves a complete checkpoint.
        kept |= planned
    stale = [key for key in present if key in owned - kept and (key not in planned or key in _REMOVED_FIRST)]
    stale += [key for key in present if key.startswith(_PROBE_PREFIX)]  # of killed runs
    store.delete([key for key in stale if key.endswith(".index.json")])
    store.delete([key for key in stale if not key.endswith(".index.json")])
    # Where uploads may not be listed, a lifecycle rule of the bucket removes them.
    with contextlib.suppress(StoreError):
        ours = owned | planned
        folders = {"", *(key.rpartition("/")[0] for key in ours)}
        # On a local disk the name of a temporary file shows its writer, not what was written.
        store.remove_abandoned(0.0, lambda key: key.rpartition("/")[0] in folders if store.is_local else key in ours)


def _objects(store: Store) -> dict[str, int]:
    """Return names and sizes of the objects there, without probes of runs that start at the same time."""
    return {info.key: info.size for info in store.list("") if not info.key.startswith(_PROBE_PREFIX)}


def _is_finished(store: Store, plan: Plan, present: Mapping[str, int]) -> bool:
    return _run_key_in(store, MANIFEST_NAME) == plan.run_key and find_problem(store, plan, present) is None


def _run_key_in(store: Store, name: str) -> str | None:
    """Return the run key in a marker or manifest; "" if that is damaged, None if it is missing."""
    try:
        data = store.read(name, LONGEST_MANIFEST_BYTES)
        found = parse_json_object(data, name, LONGEST_MANIFEST_BYTES, most_values=MOST_MANIFEST_VALUES).get("run_key")
    except ObjectNotFoundError:
        return None
    except (CheckpointError, CorruptObjectError):
        return ""
    return found if isinstance(found, str) else ""


def _damaged(uri: str, problem: str) -> str:
    return (
        f"{uri}: contains the result of this recipe, but {problem}: it was changed after the merge; see `eigenmerge"
        " verify`, or pass --overwrite to write it again"
    )


def _not_empty(uri: str, store: Store, present: Mapping[str, int]) -> str:
    merged = _run_key_in(store, MANIFEST_NAME) if MANIFEST_NAME in present else None
    if MARKER_NAME in present:
        what = "an unfinished merge of another recipe"
    elif merged:
        what = f"run {merged[:12]}, of another recipe, other weights or another version"
    else:
        what = f"{len(present)} file{'s' * (len(present) != 1)}, e.g. {next(iter(present))!r}"
    return f"{uri}: is not empty ({what}); choose an empty destination or pass --overwrite"
