"""Identity of places: whether two addresses, however they are spelled, name one place or a place inside the other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..storage.addresses import absolute_uri, is_local, protocol_of

# Protocols that open the same objects.
_SAME_SERVICE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "wasb": "az", "wasbs": "az"}


@dataclass(frozen=True, slots=True)
class Place:
    """One directory, file, object or prefix.

    chain : identity of the place, then of each place above it. A local place is identified by device and inode of its
        nearest existing folder and the names below it, so links, bind mounts, `..` and letter case do not matter; a
        remote one by service, bucket and the parts of its key, without empty ones.
    """

    chain: tuple[tuple[object, ...], ...]

    def contains(self, other: Place) -> bool:
        """Return whether `other` is this place or inside it."""
        return self.chain[0] in other.chain


def place_of(uri: str) -> Place:
    """Return the place that an address names. Reads the names of local folders; no request to a remote store."""
    return _local_place(absolute_uri(uri)) if is_local(uri) else _remote_place(uri)


def _local_place(path: str) -> Place:
    real = Path(os.path.realpath(path))
    chain: list[tuple[object, ...]] = []
    missing: list[list[str]] = []  # names below an existing folder, one list for each place that does not exist
    for folder in (real, *real.parents):
        try:
            status = folder.stat()
        except OSError:
            for names in missing:
                names.insert(0, folder.name)
            missing.append([folder.name])
            continue
        identity = (status.st_dev, status.st_ino)
        chain += [(*identity, *names) for names in missing]
        chain.append(identity)
        missing = []
    return Place(tuple(chain))


def _remote_place(uri: str) -> Place:
    uri = uri.rpartition("::")[2]  # fsspec: "simplecache::s3://bucket/x" names s3://bucket/x
    protocol = protocol_of(uri)
    service = _SAME_SERVICE.get(protocol, protocol)
    parts: list[str] = []
    for part in uri.partition("://")[2].partition("?")[0].split("/"):
        if part == ".." and len(parts) > 1:
            parts.pop()
        elif part not in {"", ".", ".."}:
            parts.append(part)
    if parts and service == "az":  # abfs://container@account.dfs.core.windows.net is az://container
        parts[0] = parts[0].partition("@")[0]
    return Place(tuple((service, *parts[:length]) for length in range(len(parts), -1, -1)))
