"""Publication of scheduled merges: inputs of the last merge, whether a new one is needed, and latest.json.

    <publish>/2026-11-21-3f9a0c12/...    one merged checkpoint: date, and hash of its inputs
    <publish>/latest.json                folder of the current checkpoint, and its inputs

`latest.json` is replaced after the checkpoint that it names is committed, so readers that follow it always find a
complete checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from ..errors import CheckpointError, CorruptObjectError, ObjectNotFoundError
from ..formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ..formats.digest import hash_json
from ..storage.store import Store

LATEST = "latest.json"
_LAYOUT = 1

UpdateOutcome = Literal["nothing new", "incremental", "full", "superseded"]


@dataclass(frozen=True, slots=True)
class MergeInputs:
    """Everything that determines the result of a scheduled merge.

    recipe : `template_digest`, which leaves the registered experts out
    base : fingerprint of the base model, "" without one
    version : of eigenmerge, because another version may compute other numbers
    experts : fingerprint of each registered expert that is merged, by name
    run_key : of the plan, and with it everything else that decides the numbers: experts that the template names, the
        vocabularies, the layout of the files
    side_files : hash of the files beside the weights, such as the tokenizer, its template and the configuration
    """

    recipe: str
    base: str
    version: str
    experts: Mapping[str, str]
    run_key: str = ""
    side_files: str = ""

    @property
    def digest(self) -> str:
        return hash_json([self.recipe, self.base, self.version, dict(self.experts), self.run_key, self.side_files])


@dataclass(frozen=True, slots=True)
class SkippedExpert:
    """An expert that is registered and not merged.

    fingerprint : of its weights, "" where they could not be listed
    found_in_weights : the cause was found when weights were read; with the same weights it is not tried again
    """

    reason: str
    fingerprint: str = ""
    found_in_weights: bool = False


@dataclass(frozen=True, slots=True)
class Publication:
    """Content of `latest.json`.

    sequence : number of the run that published, in the order in which runs looked at the registry
    skipped : experts that were registered and could not be merged
    etags : version of each file of the folder, by name, to notice later changes; empty where it is not known
    history : folders published so far, the newest first, as far as they are kept
    """

    folder: str
    inputs: MergeInputs
    sequence: int = 0
    skipped: Mapping[str, SkippedExpert] = field(default_factory=dict[str, SkippedExpert])
    etags: Mapping[str, str] = field(default_factory=dict[str, str])
    history: tuple[str, ...] = ()


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


def decide_update(now: MergeInputs, last: Publication | None, damage: str = "") -> UpdateDecision:
    """Compare the inputs with those of the last publication.

    Parameters
    ----------
    damage : what is wrong with the published folder; "" if nothing is
    """
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
    if damage:
        return UpdateDecision("full", damage, added)
    if added:
        return UpdateDecision("incremental", f"added {_join_names(added)}", added)
    if now.side_files != last.inputs.side_files:
        return UpdateDecision("full", "the tokenizer, its template or another file beside the weights changed")
    if now.run_key != last.inputs.run_key:
        return UpdateDecision("full", "an expert that the recipe names, or the layout of the files, changed")
    return UpdateDecision("nothing new", f"the {len(before)} experts of {last.folder}")


def _join_names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def folder_name(now: datetime, inputs: MergeInputs, damaged: str = "") -> str:
    """Return the folder of a merge. It is the same for the same inputs on one day, so that a killed run is resumed.

    Parameters
    ----------
    damaged : folder of the merge that this one replaces, whose files may no longer be ours; "" if there is none
    """
    digest = hash_json([inputs.digest, damaged]) if damaged else inputs.digest
    return f"{now:%Y-%m-%d}-{digest[:8]}"


def read_publication(store: Store) -> Publication | None:
    """Read latest.json; None where nothing is published yet.

    Raises
    ------
    CorruptObjectError : latest.json was not written by `publish`, or is damaged
    """
    content = _read_latest(store)
    return None if content is None else _parse(content, store)


def publish(store: Store, publication: Publication) -> Publication | None:
    """Replace latest.json, unless a run that looked at the registry later has published already.

    Two runs may publish at the same time: each replaces only the pointer that it has read.

    Returns
    -------
    Publication or None
        None : published. Otherwise what the later run published, which stays

    Raises
    ------
    CorruptObjectError : as `read_publication`
    """
    data = _encode(publication)
    while True:
        content = _read_latest(store)
        if content is None:
            if store.create(LATEST, data):
                return None
            continue
        if content == data:  # an attempt before succeeded, and its response was lost
            return None
        current = _parse(content, store)
        if current.sequence > publication.sequence:
            return current
        kept = tuple(folder for folder in current.history if folder not in publication.history)
        data = _encode(replace(publication, history=publication.history + kept))
        if content == data or store.replace(LATEST, data, content):
            return None


def forget_folders(store: Store, folders: Collection[str]) -> None:
    """Take folders that were deleted out of the history of latest.json."""
    while True:
        content = _read_latest(store)
        if content is None:
            return
        current = _parse(content, store)
        left = tuple(folder for folder in current.history if folder not in folders)
        if left == current.history or store.replace(LATEST, _encode(replace(current, history=left)), content):
            return


def _read_latest(store: Store) -> bytes | None:
    try:
        return store.read(LATEST, LONGEST_INDEX_BYTES)
    except ObjectNotFoundError:
        return None


def _parse(content: bytes, store: Store) -> Publication:
    try:
        data = parse_json_object(content, store.display(LATEST), LONGEST_INDEX_BYTES)
        return _parse_publication(data)
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptObjectError(
            f"{store.display(LATEST)}: was not written by eigenmerge ({reason}); delete it to publish again"
        ) from None


def _parse_publication(data: Mapping[str, Any]) -> Publication:
    if data["layout"] != _LAYOUT:
        raise ValueError(f"layout {data['layout']!r}, expected {_LAYOUT}")
    inputs = MergeInputs(
        recipe=str(data["recipe"]),
        base=str(data["base"]),
        version=str(data["version"]),
        experts=_texts(data["experts"]),
        run_key=str(data.get("run_key", "")),  # "" in pointers of earlier versions
        side_files=str(data.get("side_files", "")),
    )
    skipped = {
        str(name): SkippedExpert(str(entry["reason"]), str(entry["fingerprint"]), bool(entry["found_in_weights"]))
        for name, entry in dict(data.get("skipped", {})).items()
    }
    return Publication(
        folder=_folder(data["folder"]),
        inputs=inputs,
        sequence=int(data.get("sequence", 0)),
        skipped=skipped,
        etags=_texts(data.get("etags", {})),
        history=tuple(_folder(name) for name in data.get("history", [data["folder"]])),
    )


def _texts(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in dict(value).items()}


def _folder(value: object) -> str:
    if not isinstance(value, str) or not value or "/" in value or value in (".", ".."):
        raise ValueError(f"{value!r} is not the name of a folder")
    return value


def _encode(publication: Publication) -> bytes:
    inputs = publication.inputs
    content = {
        "layout": _LAYOUT,
        "folder": publication.folder,
        "recipe": inputs.recipe,
        "base": inputs.base,
        "version": inputs.version,
        "experts": dict(sorted(inputs.experts.items())),
        "run_key": inputs.run_key,
        "side_files": inputs.side_files,
        "sequence": publication.sequence,
        "skipped": {name: asdict(entry) for name, entry in sorted(publication.skipped.items())},
        "etags": dict(sorted(publication.etags.items())),
        "history": list(publication.history),
    }
    return (json.dumps(content, indent=2) + "\n").encode()
