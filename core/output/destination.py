"""The directory or URI that receives a merged checkpoint: when it may be written, and what is cleared first."""

from __future__ import annotations

import re
import time
import uuid
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

# What an earlier merge (of ours or of another tool) may have left and a new one must not keep: a stale weight file or
# index beside new ones is a checkpoint that loads wrongly.
_CHECKPOINT_FILE = re.compile(
    r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors|(model|adapter_model)\.safetensors\.index\.json|pytorch_model.*\.bin(\.index\.json)?"
    r"|adapter_config\.json|config\.json"
)


@dataclass(frozen=True, slots=True)
class Destination:
    """A place that may be written now. `overwrite`: even if something else stands there by then."""

    uri: str
    store: Store
    overwrite: bool = False


def prepare_destination(plan: Plan, uri: str, store: Store, *, overwrite: bool) -> Destination:
    """Check the destination, that it can be written too, before any weight is read.

    Nothing is left there: a run that fails while it merges leaves the destination as it was. A destination that holds
    an unfinished run of the same plan is taken over: that is what resuming is.

    Raises
    ------
    DestinationError : it is one of the inputs, or not empty, or cannot be written
    """
    place = store.root_uri
    for model in ((plan.base,) if plan.base else ()) + plan.experts:
        source = absolute_uri(model.uri)
        if source == place or source.startswith(place + "/") or place.startswith(source.removesuffix("/") + "/"):
            raise DestinationError(f"{uri}: is the place of the input model {model.name!r}; choose another destination")
    present = list(_objects(store))
    if present and not overwrite and _run_key_in(store, MARKER_NAME) != plan.run_key:
        raise DestinationError(_not_empty(store, uri, present, plan))
    if store.is_local:
        probe = f"{_PROBE_PREFIX}{uuid.uuid4().hex}"
        store.write(probe, b"")
        store.delete([probe])
    else:
        store = store.with_probed_writes(_PROBE_PREFIX)
    return Destination(uri, store, overwrite)


def take_destination(destination: Destination, plan: Plan, stop: StopSignal | None = None) -> Claim | None:
    """The right to write there, given to one run at a time; None when another run has just written the same result.

    The claim is the marker that says that what lies here is not whole yet, and which plan it belongs to. A run of the
    same recipe is waited for; what a killed one left is taken over. So files of two merges never mix.

    Raises
    ------
    DestinationError : since `prepare_destination`, another recipe's merge came there
    InterruptedRunError : `stop` was set while waiting
    """
    store, uri = destination.store, destination.uri
    watcher = ClaimWatcher(store, MARKER_NAME, {"run_key": plan.run_key})
    while True:
        if stop is not None:
            stop.check()
        marked = _run_key_in(store, MARKER_NAME)
        if marked is None and not destination.overwrite:
            present = _objects(store)
            if _is_finished(store, plan, present):
                return None
            if present and MARKER_NAME not in present:
                raise DestinationError(_not_empty(store, uri, list(present), plan))
        ours = marked in (None, plan.run_key)
        if not ours and not destination.overwrite:
            raise DestinationError(
                f"{uri}: another recipe's merge is being written there; choose another destination, or pass --overwrite"
                " once it is done or has failed. The same command there finds everything computed"
            )
        claim = watcher.acquire()
        if claim is not None:
            return claim
        if not ours and watcher.has_moved:
            raise DestinationError(f"{uri}: another recipe's merge is being written there; choose another destination")
        time.sleep(POLL_SECONDS)


def clear_for_writing(store: Store, plan: Plan) -> None:
    """Remove what another merge left, the index first, so that at no moment an index points at files of two merges."""
    present = [info.key for info in store.list("")]
    stale = [key for key in present if _CHECKPOINT_FILE.fullmatch(key) or key == MANIFEST_NAME]
    planned = {file.name for file in plan.files}
    if _run_key_in(store, MANIFEST_NAME) == plan.run_key:
        # Every file will be replaced by itself: whoever is killed now leaves a whole checkpoint.
        planned |= {MANIFEST_NAME, INDEX_NAME} if len(plan.files) > 1 else {MANIFEST_NAME}
    stale = [key for key in stale if key not in planned]
    stale += [key for key in present if key.startswith(_PROBE_PREFIX)]  # a killed run's
    store.delete([key for key in stale if key.endswith(".index.json")])
    store.delete([key for key in stale if not key.endswith(".index.json")])


def _objects(store: Store) -> dict[str, int]:
    """Names and sizes of what stands there, without the probe of another run that begins this moment."""
    return {info.key: info.size for info in store.list("") if not info.key.startswith(_PROBE_PREFIX)}


def _is_finished(store: Store, plan: Plan, present: Mapping[str, int]) -> bool:
    files = all(present.get(file.name) == file.num_bytes for file in plan.files)
    index = len(plan.files) == 1 or INDEX_NAME in present
    return files and index and MARKER_NAME not in present and _run_key_in(store, MANIFEST_NAME) == plan.run_key


def _run_key_in(store: Store, name: str) -> str | None:
    """Which run a marker or a manifest belongs to; "" for one that is damaged, None where there is none."""
    try:
        found = parse_json_object(store.read(name), name, LONGEST_INDEX_BYTES).get("run_key")
    except ObjectNotFoundError:
        return None
    except CheckpointError:
        return ""
    return found if isinstance(found, str) else ""


def _not_empty(store: Store, uri: str, present: list[str], plan: Plan) -> str:
    if _run_key_in(store, MANIFEST_NAME) == plan.run_key:
        return f"{uri}: already holds the result of this very recipe; pass --overwrite to write it again"
    what = (
        "an unfinished merge of another recipe"
        if MARKER_NAME in present
        else f"{len(present)} files, e.g. {present[0]!r}"
    )
    return f"{uri}: is not empty ({what}); choose an empty destination or pass --overwrite"
