"""Check quickly that a destination holds the complete result of a plan, so that a repeated command ends at once."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import CheckpointError, CorruptObjectError
from ..formats.digest import hash_bytes
from ..formats.file_names import INDEX_NAME, MODEL_CARD_NAME
from ..planning.plan import OutputFile, Plan
from ..storage.store import Store
from .commit import build_index
from .file_hashes import file_header
from .read_manifest import read_manifest
from .verify_files import foreign_weights


def find_problem(store: Store, plan: Plan, present: Mapping[str, int]) -> str | None:
    """Return what keeps a destination from being the complete result of `plan`, or None if it is.

    Compared are the size and the header of every weight file, the checksum of every side file, and the index. A model
    card may have been edited. The bytes of the tensors are not read: `eigenmerge verify` compares them.

    Parameters
    ----------
    present : sizes of the files there, by name
    """
    try:
        manifest = read_manifest(store)
    except CheckpointError as error:
        return str(error)
    if manifest.run_key != plan.run_key:
        return "its manifest is that of another recipe"
    for file in plan.files:
        problem = _find_weights_problem(store, plan, file, present.get(file.name))
        if problem is not None:
            return problem
    for name, sha256 in manifest.side_files.items():
        if name not in present:
            return f"{name} is missing"
        if name != MODEL_CARD_NAME and not _has_content(store, name, sha256):
            return f"{name} was changed"
    missing = sorted({side.name for side in plan.side_files} - manifest.side_files.keys())
    if missing:
        return f"its manifest lacks {missing[0]}"
    index = build_index(plan)
    if index is None and INDEX_NAME in present:
        return f"{INDEX_NAME} is not part of it"
    if index is not None and (INDEX_NAME not in present or not _has_content(store, INDEX_NAME, hash_bytes(index))):
        return f"{INDEX_NAME} is missing or was changed"
    foreign = foreign_weights(present, {file.name for file in plan.files})
    return f"{foreign[0]} is not part of it, and loaders may read it" if foreign else None


def _has_content(store: Store, name: str, sha256: str) -> bool:
    try:
        return hash_bytes(store.read(name)) == sha256
    except CorruptObjectError:  # larger than any of these files
        return False


def _find_weights_problem(store: Store, plan: Plan, file: OutputFile, size: int | None) -> str | None:
    if size is None:
        return f"{file.name} is missing"
    if size != file.num_bytes:
        return f"{file.name} has {size} bytes, expected {file.num_bytes}"
    header = file_header(plan, file)
    if store.read_head(file.name, len(header))[0] != header:
        return f"{file.name} has another header"
    return None
