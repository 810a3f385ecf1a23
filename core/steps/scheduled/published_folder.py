"""The folder that is published: whether it is still what was published, and removing those before it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, StoreError
from ...formats.digest import hash_bytes, hash_json
from ...formats.file_names import INDEX_NAME, MANIFEST_NAME, MARKER_NAME
from ...output.read_manifest import read_manifest
from ...output.verify_files import verify_files
from ...planning.plan import Plan
from ...publishing.publication import Publication
from ...recipe.recipe import Recipe
from ...storage.store import Store, locate_object

_OUR_FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}-[0-9a-f]{8}")
_PARALLEL_READS = 8


def find_damage(folder: Store, publication: Publication) -> str:
    """Return what is wrong with a published folder, or "".

    Sizes are compared with the manifest, and versions of the files with those of the day of publication. Where a
    version differs, the bytes are compared too: a copy of the folder is no damage.

    Cost: one listing and the manifest; one read of the checkpoint where versions differ.
    """
    name = publication.folder
    present = {info.key: info for info in folder.list("")}
    if MANIFEST_NAME not in present:
        return f"the published folder {name} is gone"
    try:
        manifest = read_manifest(folder)
    except (CheckpointError, StoreError):
        return f"the manifest of the published folder {name} is damaged"
    if publication.inputs.run_key not in ("", manifest.run_key):
        return f"the published folder {name} holds another merge"
    if MARKER_NAME in present:
        return f"the published folder {name} is incomplete"
    sizes = {file.name: file.num_bytes for file in manifest.files}
    wanted = {*sizes, *manifest.side_files, *([INDEX_NAME] if len(manifest.files) > 1 else [])}
    for file in sorted(wanted):
        if file not in present:
            return f"{file} of the published folder {name} is gone"
        if file in sizes and present[file].size != sizes[file]:
            return f"{file} of the published folder {name} has {present[file].size} bytes, expected {sizes[file]}"
    changed = [file for file, etag in publication.etags.items() if file in present and present[file].etag != etag]
    if changed:
        checks, _ = verify_files(folder, manifest)
        problems = [problem for check in checks for problem in check.problems]
        if problems:
            return f"the published folder {name} is damaged: {problems[0]}"
    return ""


def file_versions(folder: Store) -> dict[str, str]:
    """Return the version (etag) of each file of a folder."""
    return {info.key: info.etag for info in folder.list("")}


def hash_side_files(plan: Plan, recipe: Recipe) -> str:
    """Hash the files beside the weights: the run key has the names of those that are copied, not their bytes."""

    def content_hash(uri: str) -> str:
        store, key = locate_object(uri, recipe.storage_options)
        return hash_bytes(store.read(key))

    copied = [side for side in plan.side_files if side.content is None and side.source_uri is not None]
    with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="side") as pool:
        hashes = list(pool.map(content_hash, [side.source_uri or "" for side in copied]))
    return hash_json(sorted([side.name, found] for side, found in zip(copied, hashes, strict=True)))


def remove_old_folders(
    published: Store, storage_options: Mapping[str, Any] | None, publication: Publication, keep: int
) -> list[str]:
    """Delete published folders except the newest `keep`, and return the names of those that were deleted.

    Only folders of the history of `latest.json` whose manifest is of eigenmerge are touched, and in them only the files
    that their manifest names. The folder that the pointer names is always kept. The manifest goes last, so that a
    deletion that was interrupted continues at the next call.

    Parameters
    ----------
    keep : at least 1, the pointer's folder included
    """
    history = [publication.folder, *(name for name in publication.history if name != publication.folder)]
    removed: list[str] = []
    for name in history[keep:]:
        if not _OUR_FOLDER.fullmatch(name):
            continue
        folder = Store(published.uri(name), storage_options)
        try:
            manifest = read_manifest(folder)
        except CheckpointError:
            removed.append(name)  # gone already, or replaced by something that is not ours
            continue
        files = [*(file.name for file in manifest.files), *manifest.side_files]
        folder.delete([INDEX_NAME])
        folder.delete([file for file in files if file != MANIFEST_NAME])
        folder.delete([MANIFEST_NAME])
        remove_empty_directory(folder)
        removed.append(name)
    return removed


def remove_empty_directory(folder: Store) -> None:
    """Remove the directory of a local store if it is empty; object stores have none."""
    if folder.is_local:
        with contextlib.suppress(OSError):  # it holds files of others
            Path(folder.root_uri).rmdir()
