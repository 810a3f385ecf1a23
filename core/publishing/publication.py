"""Publication of scheduled merges: inputs of the last merge, whether a new one is needed, and latest.json.

    <publish>/2026-11-21-3f9a0c12/...    one merged checkpoint: date, and hash of its inputs
    <publish>/latest.json                folder of the current checkpoint, and its inputs

`latest.json` is replaced after the checkpoint that it names is committed, so readers that follow it always find a
complete checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ..errors import CheckpointError, CorruptObjectError, ObjectNotFoundError
from ..formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ..formats.digest import hash_json
from ..storage.store import Store

LATEST = "latest.json"
_LAYOUT = 1

UpdateOutcome = Literal["nothing new", "incremental", "full"]


@dataclass(frozen=True, slots=True)
class MergeInputs:
    """Everything that determines the result of a scheduled merge.

    recipe : `template_digest`, which leaves the registered experts out
    base : fingerprint of the base model, "" without one
    version : of eigenmerge, because another version may compute other numbers
    experts : fingerprint of each registered expert, by name
    """

    recipe: str
    base: str
    version: str
    experts: Mapping[str, str]

    @property
    def digest(self) -> str:
        return hash_json([self.recipe, self.base, self.version, dict(self.experts)])


@dataclass(frozen=True, slots=True)
class Publication:
    """Content of `latest.json`."""

    folder: str
    inputs: MergeInputs


@dataclass(frozen=True, slots=True)
class UpdateDecision:
    """Whether a scheduled run has to merge, and why.

    outcome : "incremental" when experts were only added, so that kept sums replace the other experts; the merge itself
        is the same
    """

    outcome: UpdateOutcome
    reason: str
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def decide_update(now: MergeInputs, last: Publication | None) -> UpdateDecision:
    """Compare the inputs with those of the last publication."""
    if not now.experts:
        return UpdateDecision("nothing new", "no expert is registered")
    if last is None:
        return UpdateDecision("full", "nothing is published yet", added=tuple(sorted(now.experts)))
    before = last.inputs.experts
    added = tuple(sorted(set(now.experts) - set(before)))
    removed = tuple(sorted(set(before) - set(now.experts)))
    changed = tuple(sorted(name for name in set(before) & set(now.experts) if before[name] != now.experts[name]))
    causes = [
        *(["the recipe changed"] if now.recipe != last.inputs.recipe else []),
        *(["the base model changed"] if now.base != last.inputs.base else []),
        *([f"eigenmerge {last.inputs.version} became {now.version}"] if now.version != last.inputs.version else []),
        *([f"removed {_join_names(removed)}"] if removed else []),
        *([f"changed {_join_names(changed)}"] if changed else []),
    ]
    if causes:
        causes += [f"added {_join_names(added)}"] if added else []
        return UpdateDecision("full", "; ".join(causes), added, changed, removed)
    if added:
        return UpdateDecision("incremental", f"added {_join_names(added)}", added)
    return UpdateDecision("nothing new", f"the {len(before)} experts of {last.folder}")


def _join_names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def folder_name(now: datetime, inputs: MergeInputs) -> str:
    """Return the folder of a merge. It is the same for the same inputs on one day, so that a killed run is resumed."""
    return f"{now:%Y-%m-%d}-{inputs.digest[:8]}"


def read_publication(store: Store) -> Publication | None:
    """Read latest.json; None where nothing is published yet.

    Raises
    ------
    CorruptObjectError : latest.json was not written by `write_publication`, or is damaged
    """
    try:
        content = store.read(LATEST)
    except ObjectNotFoundError:
        return None
    try:
        data = parse_json_object(content, store.display(LATEST), LONGEST_INDEX_BYTES)
        return _parse_publication(data)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(
            f"{store.display(LATEST)}: was not written by eigenmerge ({error}); delete it to publish again"
        ) from None


def _parse_publication(data: Mapping[str, Any]) -> Publication:
    if data["layout"] != _LAYOUT:
        raise ValueError(f"layout {data['layout']!r}, expected {_LAYOUT}")
    experts = {str(name): str(fingerprint) for name, fingerprint in dict(data["experts"]).items()}
    inputs = MergeInputs(str(data["recipe"]), str(data["base"]), str(data["version"]), experts)
    return Publication(str(data["folder"]), inputs)


def write_publication(store: Store, publication: Publication) -> None:
    """Replace latest.json."""
    content = {
        "layout": _LAYOUT,
        "folder": publication.folder,
        "recipe": publication.inputs.recipe,
        "base": publication.inputs.base,
        "version": publication.inputs.version,
        "experts": dict(sorted(publication.inputs.experts.items())),
    }
    store.write(LATEST, (json.dumps(content, indent=2) + "\n").encode())
