"""Decide whether a destination may be written, hold it for one run, and clear what another merge left."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ..coordination.claims import POLL_SECONDS, Claim, ClaimWatcher
from ..coordination.stop import StopSignal
from ..errors import CheckpointError, DestinationError, ObjectNotFoundError
from ..formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ..formats.file_names import INDEX_NAME, MANIFEST_NAME, MARKER_NAME
from ..planning.plan import Plan
from ..storage.addresses import absolute_uri
from ..storage.store import Store

_PROBE_PREFIX = ".eigenmerge-probe-"

# Files of an earlier merge, by any tool, that must not remain: a checkpoint with a stale weight file or index loads
# wrong weights.
_CHECKPOINT_FILE = re.compile(
    r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors|(model|adapter_model)\.safetensors\.index\.json|pytorch_model.*\.bin(\.index\.json)?"
    r"|adapter_config\.json|config\.json"
)


@dataclass(frozen=True, slots=True)
class Destination:
    """A checked destination.

    uri : as the user wrote it
    overwrite : write even if the destination is no longer empty
    """

    uri: str
    store: Store
    overwrite: bool = False


def prepare_destination(plan: Plan, uri: str, store: Store, *, overwrite: bool) -> Destination:
    """Check that the destination may be written, before any weight is read. Leaves nothing there.

    A destination with an unfinished run of the same plan is accepted: the run resumes.

    Parameters
    ----------
    uri : address for messages, as the user wrote it
    store : the place at `uri`

    Raises
    ------
    DestinationError : the destination is one of the inputs, or not empty
    StoreError : it cannot be written
    """
    place = store.root_uri
    for model in ((plan.base,) if plan.base else ()) + plan.experts:
        source = absolute_uri(model.uri)
        if source == place or source.startswith(place + "/") or place.startswith(source.removesuffix("/") + "/"):
            raise DestinationError(
                f"{uri}: is the location of the input model {model.name!r}; choose another destination"
            )
    present = list(_objects(store))
    if present and not overwrite and _run_key_in(store, MARKER_NAME) != plan.run_key:
        raise DestinationError(_not_empty(store, uri, present, plan))
    return Destination(uri, store.with_probed_writes(_PROBE_PREFIX), overwrite)


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
    watcher = ClaimWatcher(store, MARKER_NAME, {"run_key": plan.run_key})
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
                raise DestinationError(_not_empty(store, uri, list(present), plan))
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
    """Remove files of another merge, its index first, so that no index ever refers to files of two merges."""
    present = [info.key for info in store.list("")]
    stale = [key for key in present if _CHECKPOINT_FILE.fullmatch(key) or key == MANIFEST_NAME]
    planned = {file.name for file in plan.files}
    if _run_key_in(store, MANIFEST_NAME) == plan.run_key:
        # The same result is there: each file is replaced by an equal one, so a kill leaves a complete checkpoint.
        planned |= {MANIFEST_NAME, *(side.name for side in plan.side_files)}
        planned |= {INDEX_NAME} if len(plan.files) > 1 else set()
    stale = [key for key in stale if key not in planned]
    stale += [key for key in present if key.startswith(_PROBE_PREFIX)]  # of killed runs
    store.delete([key for key in stale if key.endswith(".index.json")])
    store.delete([key for key in stale if not key.endswith(".index.json")])


def _objects(store: Store) -> dict[str, int]:
    """Return names and sizes of the objects there, without probes of runs that start at the same time."""
    return {info.key: info.size for info in store.list("") if not info.key.startswith(_PROBE_PREFIX)}


def _is_finished(store: Store, plan: Plan, present: Mapping[str, int]) -> bool:
    files = all(present.get(file.name) == file.num_bytes for file in plan.files)
    index = len(plan.files) == 1 or INDEX_NAME in present
    return files and index and _run_key_in(store, MANIFEST_NAME) == plan.run_key


def _run_key_in(store: Store, name: str) -> str | None:
    """Return the run key in a marker or manifest; "" if that is damaged, None if it is missing."""
    try:
        found = parse_json_object(store.read(name), name, LONGEST_INDEX_BYTES).get("run_key")
    except ObjectNotFoundError:
        return None
    except CheckpointError:
        return ""
    return found if isinstance(found, str) else ""


def _not_empty(store: Store, uri: str, present: list[str], plan: Plan) -> str:
    if _run_key_in(store, MANIFEST_NAME) == plan.run_key:
        return f"{uri}: already contains the result of this recipe; pass --overwrite to write it again"
    what = (
        "an unfinished merge of another recipe"
        if MARKER_NAME in present
        else f"{len(present)} files, e.g. {present[0]!r}"
    )
    return f"{uri}: is not empty ({what}); choose an empty destination or pass --overwrite"
