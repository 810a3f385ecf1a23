"""The directory or URI that receives a merged checkpoint: when it may be written, and what is cleared first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DestinationError, ObjectNotFoundError
from ..planning.plan import Plan
from ..storage.backend import absolute_uri
from ..storage.store import Store
from .manifest import MANIFEST_NAME

MARKER_NAME = ".eigenmerge-incomplete.json"
_PROBE_NAME = ".eigenmerge-probe"
INDEX_NAME = "model.safetensors.index.json"

# What an earlier merge (of ours or of another tool) may have left and a new one must not keep: a stale weight file or
# index beside new ones is a checkpoint that loads wrongly.
_CHECKPOINT_FILE = re.compile(
    r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors|(model|adapter_model)\.safetensors\.index\.json|pytorch_model.*\.bin(\.index\.json)?"
    r"|adapter_config\.json|config\.json"
)


@dataclass(frozen=True, slots=True)
class Destination:
    """A place that may be written now."""

    uri: str
    store: Store


def prepare_destination(
    plan: Plan, uri: str, storage_options: Mapping[str, Any] | None, *, overwrite: bool
) -> Destination:
    """Check the destination, that it can be written too, before any weight is read.

    Nothing is left there: a run that fails while it merges leaves the destination as it was. A destination that holds
    an unfinished run of the same plan is taken over: that is what resuming is.

    Raises
    ------
    DestinationError : it is one of the inputs, or not empty, or cannot be written
    """
    place = absolute_uri(uri)
    for model in ((plan.base,) if plan.base else ()) + plan.experts:
        source = absolute_uri(model.uri)
        if source == place or source.startswith(place + "/") or place.startswith(source.removesuffix("/") + "/"):
            raise DestinationError(f"{uri}: is the place of the input model {model.name!r}; choose another destination")
    store = Store(place, storage_options)
    present = [info.key for info in store.list("")]
    if present not in ([], [MARKER_NAME]) and not overwrite and not _is_unfinished_run_of(store, plan):
        raise DestinationError(_not_empty(store, uri, present, plan))
    store.write(_PROBE_NAME, b"")
    store.delete([_PROBE_NAME])
    return Destination(uri, store)


def mark_incomplete(store: Store, plan: Plan) -> None:
    """Say that what lies here is not whole yet, and which plan it belongs to."""
    store.write(MARKER_NAME, json.dumps({"run_key": plan.run_key}).encode())


def clear_for_writing(store: Store, plan: Plan) -> None:
    """Remove what another merge left, the index first, so that at no moment an index points at files of two merges."""
    present = [info.key for info in store.list("")]
    mark_incomplete(store, plan)
    stale = [key for key in present if _CHECKPOINT_FILE.fullmatch(key) or key == MANIFEST_NAME]
    planned = {file.name for file in plan.files}
    store.delete([key for key in stale if key.endswith(".index.json")])
    store.delete([key for key in stale if not key.endswith(".index.json") and key not in planned])


def _is_unfinished_run_of(store: Store, plan: Plan) -> bool:
    try:
        return json.loads(store.read(MARKER_NAME)).get("run_key") == plan.run_key
    except (ObjectNotFoundError, ValueError, AttributeError):
        return False


def _not_empty(store: Store, uri: str, present: list[str], plan: Plan) -> str:
    try:
        if json.loads(store.read(MANIFEST_NAME)).get("run_key") == plan.run_key:
            return f"{uri}: already holds the result of this very recipe; pass --overwrite to write it again"
    except (ObjectNotFoundError, ValueError, AttributeError):
        pass
    what = (
        "an unfinished merge of another recipe"
        if MARKER_NAME in present
        else f"{len(present)} files, e.g. {present[0]!r}"
    )
    return f"{uri}: is not empty ({what}); choose an empty destination or pass --overwrite"
