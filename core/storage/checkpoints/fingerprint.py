"""Fingerprints: hashes that identify the weights of a model, of its files and of its adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from ...formats.digest import hash_json
from ...listing import FileVersion
from .samples import COMPLETE

# "sampled" hashes all bytes of small models, and of large ones samples together with what tells two states of a file
# apart (docs/decisions/100-identity-of-models.md); "content" hashes all bytes of every model.
FingerprintKind = Literal["sampled", "content"]

# Up to these sizes of a model all bytes are hashed: seconds on one core, and on a network.
_COMPLETE_LOCAL_BYTES = 2**30
_COMPLETE_REMOTE_BYTES = 64 * 2**20

_HUB_BLOB = re.compile(r"[0-9a-f]{64}")


def hashes_all_bytes(kind: FingerprintKind, files: Iterable[FileVersion]) -> bool:
    """Return whether the files of a model are hashed completely.

    Remote files of which the storage says neither etag nor time always are: nothing else tells two versions apart.
    """
    files = list(files)
    if kind == "content" or any(file.stat is None and not file.etag for file in files):
        return True
    is_local = all(file.stat is not None for file in files)
    return sum(file.size for file in files) <= (_COMPLETE_LOCAL_BYTES if is_local else _COMPLETE_REMOTE_BYTES)


def fingerprint_file(file: FileVersion, path: Path | None, url: str = "") -> str:
    """Return the fingerprint of one weight file from its state with digest.

    A digest of all bytes is the fingerprint, wherever the file is. Samples do not see a change of a few entries, so
    these are added: the etag of a remote file, the name of a blob in the cache of the Hub (the hash of its content), or
    else both times and the path of a local file. Times alone are not enough: `chown -R` gives all files one time of
    change, and archives may give all one time of writing.

    Parameters
    ----------
    path : of a local file
    url : of a file on a web server, whose etag tells versions of this file apart, not different files
    """
    if file.digest.startswith(COMPLETE):
        return file.digest.removeprefix(COMPLETE)
    blob = _hub_blob(path) if path is not None else None
    facts: list[object] = ["sampled", file.digest, file.etag, blob or url]
    if file.stat is not None and blob is None:
        facts += [file.stat[1:], str(path.resolve()) if path is not None else ""]
    return hash_json(facts)


def fingerprint_model(file_fingerprints: Iterable[str]) -> str:
    """Return the fingerprint of a model from those of its weight files, whatever their names and order."""
    return hash_json(sorted(file_fingerprints))


def fingerprint_adapter(weights: str, config: Mapping[str, object]) -> str:
    """Return the fingerprint of an adapter from that of its weights and its config, which scales the weights."""
    return hash_json([weights, dict(config)])


def fingerprint_adapted_model(model: str, adapter: str) -> str:
    """Return the fingerprint of a model with an adapter from those of both."""
    return hash_json([model, adapter])


def _hub_blob(path: Path) -> str | None:
    """Return the sha256 that names a file in the cache of the Hub (snapshots/<commit>/<file> -> blobs/<sha256>)."""
    target = path.resolve()
    is_blob = target != path and target.parent.name == "blobs" and _HUB_BLOB.fullmatch(target.name)
    return target.name if is_blob else None
