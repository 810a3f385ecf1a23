"""Which files of a destination Eigenmerge wrote: only these are replaced or removed.

The manifest of a finished merge lists its files; the marker of an unfinished one lists those that it writes and those
of the merge that it replaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast

from ..errors import CheckpointError, CorruptObjectError, DestinationError, ObjectNotFoundError
from ..formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ..formats.file_names import INDEX_NAME, MANIFEST_NAME, MARKER_NAME, MODEL_CARD_NAME, REPORT_NAME
from ..planning.plan import Plan
from ..storage.store import Store
from .read_manifest import LONGEST_MANIFEST_BYTES, MOST_MANIFEST_VALUES

# Files that loaders read as part of a checkpoint, whatever wrote them: one that remains beside another merge's files
# would be loaded with them.
_LOADED = re.compile(
    r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors|(model|adapter_model)\.safetensors\.index\.json|pytorch_model.*\.bin(\.index\.json)?"
    r"|adapter_config\.json|config\.json"
)


def planned_names(plan: Plan) -> set[str]:
    """Return the names of all files that a merge writes, without its marker."""
    names = {file.name for file in plan.files} | {side.name for side in plan.side_files}
    return names | {MODEL_CARD_NAME, REPORT_NAME, MANIFEST_NAME} | ({INDEX_NAME} if len(plan.files) > 1 else set())


def owned_names(store: Store, present: Iterable[str]) -> set[str]:
    """Return the names, of those present at the top of a destination, that Eigenmerge wrote."""
    here = {name for name in present if "/" not in name}
    owned = {name for name in (MANIFEST_NAME, MARKER_NAME) if name in here}
    for name in sorted(owned):
        content = _read(store, name)
        listed = _listed_names(content) if content is not None else None
        # A marker of an earlier version has no list, and a damaged file none that can be read.
        found = here if listed is None else here & listed
        owned |= {one for one in found if listed is not None or _LOADED.fullmatch(one)}
    return owned


def check_files_are_owned(store: Store, uri: str, present: Iterable[str], plan: Plan) -> set[str]:
    """Return the owned names, after a check that every file in the way of the merge is one of them.

    Raises
    ------
    DestinationError : a file that Eigenmerge did not write would be replaced, or loaded with the result
    """
    names = list(present)
    owned, planned = owned_names(store, names), planned_names(plan)
    foreign = sorted(
        name for name in names if "/" not in name and name not in owned and (name in planned or _LOADED.fullmatch(name))
    )
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise DestinationError(
            f"{uri}: has {foreign[0]!r}{more}, which Eigenmerge did not write; --overwrite replaces only merges of"
            " Eigenmerge: move these files away, or choose another destination"
        )
    return owned


def _read(store: Store, name: str) -> Mapping[str, object] | None:
    limit = LONGEST_MANIFEST_BYTES if name == MANIFEST_NAME else LONGEST_INDEX_BYTES
    try:
        return parse_json_object(store.read(name, limit), name, limit, most_values=MOST_MANIFEST_VALUES)
    except (ObjectNotFoundError, CorruptObjectError, CheckpointError):
        return None


def _listed_names(content: Mapping[str, object]) -> set[str] | None:
    """Return the names in a marker or a manifest; None where it lists none."""
    files = content.get("files")
    if not isinstance(files, list):
        return None
    names: set[str] = {INDEX_NAME, MANIFEST_NAME}
    for entry in cast("list[object]", files):
        name = cast("dict[str, object]", entry).get("name") if isinstance(entry, dict) else entry
        names |= {name} if isinstance(name, str) else set()
    sides = content.get("side_files")
    return names | set(cast("dict[str, object]", sides)) if isinstance(sides, dict) else names
