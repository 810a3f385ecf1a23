"""Publishing scheduled merges: what was merged last, whether anything changed, and the pointer that moves last.

    <publish>/2026-11-21-3f9a0c12/...    one merged checkpoint, under its date and what it was merged from
    <publish>/latest.json                which of them is current, and from what it was made

A reader follows `latest.json`; it is replaced as one object after the checkpoint it names is committed, so there is
always a whole checkpoint behind it.
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

Outcome = Literal["nothing new", "incremental", "full"]


@dataclass(frozen=True, slots=True)
class MergeInputs:
    """All that decides the result of a scheduled merge.

    recipe : digest of the recipe without its registered experts
    base : fingerprint of the base model
    version : of eigenmerge; another one may compute other numbers
    experts : name to fingerprint
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
    """What `latest.json` says."""

    folder: str
    inputs: MergeInputs


@dataclass(frozen=True, slots=True)
class Decision:
    """What a scheduled run has to do and why.

    outcome : "incremental" when experts were only added, so that kept sums make it cheap; the result is the same
    """

    outcome: Outcome
    reason: str
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def decide(now: MergeInputs, last: Publication | None) -> Decision:
    """Compare what is there with what was merged last. Pure."""
    if not now.experts:
        return Decision("nothing new", "no expert is registered")
    if last is None:
        return Decision("full", "nothing is published yet", added=tuple(sorted(now.experts)))
    before = last.inputs.experts
    added = tuple(sorted(set(now.experts) - set(before)))
    removed = tuple(sorted(set(before) - set(now.experts)))
    changed = tuple(sorted(name for name in set(before) & set(now.experts) if before[name] != now.experts[name]))
    causes = [
        *(["the recipe changed"] if now.recipe != last.inputs.recipe else []),
        *(["the base model changed"] if now.base != last.inputs.base else []),
        *([f"eigenmerge {last.inputs.version} became {now.version}"] if now.version != last.inputs.version else []),
        *([f"removed {_names(removed)}"] if removed else []),
        *([f"changed {_names(changed)}"] if changed else []),
    ]
    if causes:
        causes += [f"added {_names(added)}"] if added else []
        return Decision("full", "; ".join(causes), added, changed, removed)
    if added:
        return Decision("incremental", f"added {_names(added)}", added)
    return Decision("nothing new", f"{len(before)} experts as in {last.folder}")


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def folder_name(now: datetime, inputs: MergeInputs) -> str:
    """The same on the same day for the same inputs: a run that was killed is taken up where it stopped."""
    return f"{now:%Y-%m-%d}-{inputs.digest[:8]}"


def read_publication(store: Store) -> Publication | None:
    """Return what is published in `store`; None if nothing is.

    Raises
    ------
    CorruptObjectError : latest.json is not what this function's counterpart writes
    """
    try:
        content = store.read(LATEST)
    except ObjectNotFoundError:
        return None
    try:
        data = parse_json_object(content, store.display(LATEST), LONGEST_INDEX_BYTES)
        return _publication(data)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise CorruptObjectError(
            f"{store.display(LATEST)}: is not a pointer of eigenmerge ({error}); delete it to publish anew"
        ) from None


def _publication(data: Mapping[str, Any]) -> Publication:
    if data["layout"] != _LAYOUT:
        raise ValueError(f"layout {data['layout']!r}, expected {_LAYOUT}")
    experts = {str(name): str(fingerprint) for name, fingerprint in dict(data["experts"]).items()}
    inputs = MergeInputs(str(data["recipe"]), str(data["base"]), str(data["version"]), experts)
    return Publication(str(data["folder"]), inputs)


def write_publication(store: Store, publication: Publication) -> None:
    """Move the pointer: one object, replaced whole."""
    content = {
        "layout": _LAYOUT,
        "folder": publication.folder,
        "recipe": publication.inputs.recipe,
        "base": publication.inputs.base,
        "version": publication.inputs.version,
        "experts": dict(sorted(publication.inputs.experts.items())),
    }
    store.write(LATEST, (json.dumps(content, indent=2) + "\n").encode())
