"""Push a finished checkpoint to a repository of the Hub that is empty or holds an earlier merge."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError, DestinationError, RecipeError
from ...formats.digest import hash_bytes
from ...formats.file_names import INDEX_NAME, MANIFEST_NAME, REPORT_NAME
from ...output.card_rules import is_hub_id
from ...output.read_manifest import LONGEST_MANIFEST_BYTES, Manifest, parse_manifest
from ...output.verify_files import foreign_weights
from ...publishing.hub_repository import HubRepository, commit, open_repository, read_small_file, upload_content
from ...storage.copy_to_file import copy_to_file
from ...storage.object_hash import hash_object
from ...storage.store import Store
from .pushed_files import PushedFiles, find_files

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_CREATED_BY_THE_HUB = frozenset({".gitattributes"})
_LARGEST_SMALL_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push.

    url : of the repository
    commit_url : of the commit; "" where the repository had these files already
    num_bytes : of the files that were sent or found on the Hub's storage
    removed : files of an earlier merge that this one does not have
    left_out : files of the directory that are no part of the merge
    """

    url: str
    commit_url: str
    num_files: int
    num_bytes: int
    removed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def prepare_push(
    name: str, options: Mapping[str, Any] | None = None, *, public: bool = False, overwrite: bool = False
) -> HubRepository:
    """Check that a repository may be written, before any work: name, token, network, and what it holds.

    Creates the repository where it does not exist.

    Parameters
    ----------
    name : owner/name
    options : of fsspec, for the token and the endpoint of the Hub
    overwrite : replace files of an earlier merge also where they were edited on the Hub

    Raises
    ------
    RecipeError : the name is none of the Hub
    DestinationError : no access; files that Eigenmerge did not write
    StoreError : the Hub does not answer
    """
    _check_name(name)
    repository = open_repository(name, options, public=public)
    _earlier_merge(repository, frozenset(), overwrite=overwrite)
    return repository


def push_checkpoint(
    checkpoint: Store,
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    public: bool = False,
    overwrite: bool = False,
    on_file: Callable[[str, int], None] | None = None,
) -> Pushed:
    """Push a finished checkpoint in one commit. After a kill, the same call sends only what has not arrived.

    Files that are the same there are not sent. Files of an earlier merge that this one lacks are removed in the same
    commit.

    Cost: one read of the checkpoint. One file of a remote checkpoint at a time is copied to a temporary directory.

    Parameters
    ----------
    on_file : called with name and size before a file is sent

    Raises
    ------
    RecipeError, DestinationError, StoreError : as `prepare_push`
    CheckpointError : not a finished merge, or its files have changed since
    """
    _check_name(name)
    files = find_files(checkpoint)
    repository = open_repository(name, options, public=public)
    same = {name for name in files.sizes if _is_there(checkpoint, repository, files, name)}
    owned = _earlier_merge(repository, same, overwrite=overwrite)
    additions: list[CommitOperationAdd] = []
    with tempfile.TemporaryDirectory(prefix="eigenmerge-push-") as place:
        for file, size in files.sizes.items():
            if file in same:
                continue
            if on_file is not None:
                on_file(file, size)
            path = checkpoint.local_path(file) or copy_to_file(
                checkpoint, file, size, Path(place) / str(len(additions))
            )
            additions.append(_upload(repository, checkpoint.display(file), file, path, files.hashes.get(file)))
            if path.is_relative_to(place) and size > _LARGEST_SMALL_FILE_BYTES:  # small ones are sent by the commit
                path.unlink()
        removed = sorted(owned & repository.files.keys() - files.sizes.keys() - _CREATED_BY_THE_HUB)
        url = ""
        if additions or removed:
            url = commit(
                repository, additions, removed, f"Merge of {len(files.manifest.experts)} experts by Eigenmerge"
            )
    sent = sum(addition.upload_info.size for addition in additions)
    return Pushed(repository.url, url, len(additions), sent, tuple(removed), files.left_out)


def _check_name(name: str) -> None:
    if not is_hub_id(name):
        raise RecipeError(f"{name!r} is no name of a repository; expected owner/name")


def _earlier_merge(repository: HubRepository, same: Set[str], *, overwrite: bool) -> set[str]:
    """Return the names that an earlier merge wrote to the repository; empty for an empty one.

    Parameters
    ----------
    same : names of files that are there with the content that is pushed

    Raises
    ------
    DestinationError : there are files, and no manifest of a merge; weights that are not the merge's; files of the merge
        that were edited there, without `overwrite`
    """
    present = repository.files.keys() - _CREATED_BY_THE_HUB
    if not present:
        return set()
    manifest = _manifest(repository)
    if manifest is None:
        example = sorted(present)[0]
        raise DestinationError(
            f"{repository.name}: has {len(present)} files, e.g. {example!r}, and no {MANIFEST_NAME}: no merge of"
            " Eigenmerge; choose another repository, or an empty one"
        )
    weights = {file.name for file in manifest.files}
    owned = {*weights, *manifest.side_files, MANIFEST_NAME, INDEX_NAME, REPORT_NAME}
    foreign = foreign_weights(present, owned)
    if foreign:
        raise DestinationError(
            f"{repository.name}: has {foreign[0]!r}, which is not part of the merge there and which loaders may read;"
            " remove it, or choose another repository"
        )
    replaced = sorted((owned & present) - same)
    edited = [] if overwrite else [name for name in replaced if _is_edited(repository, manifest, name)]
    if edited:
        raise DestinationError(
            f"{repository.name}: {edited[0]} was edited there since it was pushed; copy the changes that you need, and"
            " replace it by `eigenmerge push OUT OWNER/NAME --overwrite`"
        )
    return owned


def _manifest(repository: HubRepository) -> Manifest | None:
    if MANIFEST_NAME not in repository.files:
        return None
    data = read_small_file(repository, MANIFEST_NAME, LONGEST_MANIFEST_BYTES)
    try:
        return None if data is None else parse_manifest(data, f"{MANIFEST_NAME} of {repository.name}")
    except CheckpointError as error:
        raise DestinationError(f"{error}; remove it on the Hub, or choose another repository") from None


def _is_edited(repository: HubRepository, manifest: Manifest, name: str) -> bool:
    """Return whether a file of the merge in the repository has another hash than its manifest states."""
    expected = {file.name: file.sha256 for file in manifest.files} | dict(manifest.side_files)
    digest, remote = expected.get(name), repository.files[name]
    if digest is None:
        return False
    if remote.sha256 is not None:
        return remote.sha256 != digest
    data = read_small_file(repository, name, _LARGEST_SMALL_FILE_BYTES)
    return data is None or hash_bytes(data) != digest


def _is_there(checkpoint: Store, repository: HubRepository, files: PushedFiles, name: str) -> bool:
    """Return whether the repository has this file with the same content."""
    remote = repository.files.get(name)
    if remote is None or remote.size != files.sizes[name]:
        return False
    if remote.sha256 is None:
        return remote.git_sha1 == _git_sha1(checkpoint.read(name))
    return remote.sha256 == (files.hashes.get(name) or hash_object(checkpoint, name, files.sizes[name]))


def _upload(repository: HubRepository, display: str, name: str, path: Path, expected: str | None) -> CommitOperationAdd:
    """Upload the content of a file, after a check that it is that of the manifest."""
    from huggingface_hub import CommitOperationAdd

    addition = CommitOperationAdd(name, str(path))
    if expected is not None and addition.upload_info.sha256.hex() != expected:
        raise CheckpointError(f"{display}: its sha256 differs from the manifest; see `eigenmerge verify`")
    upload_content(repository, addition)
    return addition


def _git_sha1(data: bytes) -> str:
    """Return the name of a blob in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
