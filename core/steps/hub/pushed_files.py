"""Which files of a checkpoint are pushed: those of the merge, after a check that it is finished and unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import CheckpointError
from ...formats.digest import hash_bytes
from ...formats.file_names import INDEX_NAME, MANIFEST_NAME, MARKER_NAME, MODEL_CARD_NAME, REPORT_NAME
from ...output.card_rules import metadata_problems
from ...output.read_manifest import Manifest, read_manifest
from ...storage.store import Store

_LONGEST_CARD_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class PushedFiles:
    """The files of a finished merge.

    sizes : by name, of the files that are pushed
    hashes : sha256 of weight files, where the manifest has it
    left_out : names of other files in the directory
    """

    manifest: Manifest
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]
    left_out: tuple[str, ...]


def find_files(checkpoint: Store) -> PushedFiles:
    """Return the files of a merge, after a check of names, sizes, small files and the metadata of the card.

    The hash of a weight file is compared while it is uploaded. The card may have been edited after the merge.

    Raises
    ------
    CheckpointError : not a finished merge, or changed since; the card has metadata that the Hub refuses
    StoreError : it cannot be read
    """
    manifest = read_manifest(checkpoint)
    here = checkpoint.display("")
    present = {info.key: info.size for info in checkpoint.list("")}
    if MARKER_NAME in present:
        raise CheckpointError(f"{here}: the merge has not finished; run it again")
    expected = {file.name: file.num_bytes for file in manifest.files}
    names = [*expected, *manifest.side_files, MANIFEST_NAME, *([INDEX_NAME] if len(expected) > 1 else [])]
    for name in names:
        if name not in present:
            raise CheckpointError(f"{here}: {name} is missing; see `eigenmerge verify`")
        if present[name] != expected.get(name, present[name]):
            raise CheckpointError(
                f"{here}: {name} has {present[name]} bytes, expected {expected[name]}; see `eigenmerge verify`"
            )
    for name, digest in manifest.side_files.items():
        if name != MODEL_CARD_NAME and hash_bytes(checkpoint.read(name)) != digest:
            raise CheckpointError(f"{here}: {name} was changed after the merge; see `eigenmerge verify`")
    if MODEL_CARD_NAME in present:
        card = checkpoint.read(MODEL_CARD_NAME, _LONGEST_CARD_BYTES).decode(errors="replace")
        problems = metadata_problems(card)
        if problems:
            raise CheckpointError(f"{here}: {MODEL_CARD_NAME}: {problems[0]}; correct the metadata, or merge again")
    pushed = {name: present[name] for name in [*names, REPORT_NAME] if name in present}
    hashes = {file.name: file.sha256 for file in manifest.files if file.sha256 is not None}
    return PushedFiles(manifest, pushed, hashes, tuple(sorted(present.keys() - pushed.keys())))
