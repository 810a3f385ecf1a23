"""The marker of a store: an object that says that a place is a store. Commands refuse places without one.

The first run writes it. A store of an earlier version has none; it is recognized by an object of ours.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..errors import CheckpointError, NoStoreError, ObjectNotFoundError, StoreError
from ..formats.bounded_json import parse_json_object
from ..formats.store_folders import ALIGNMENTS, PARTS, RUNS, SPECTRA, STORE_MARKER, SUMS
from ..storage.store import Store
from .kinds import is_ours, kind_of

FORMAT_VERSION = 1

_FIELD = "eigenmerge_store"
_CONTENT = (json.dumps({_FIELD: FORMAT_VERSION}) + "\n").encode()
_LONGEST_MARKER_BYTES = 4096
_MOST_TRIED_OBJECTS = 20  # in each folder, of a store without a marker
_MOST_LISTED_OBJECTS = 5000  # of a remote place, in the search for a store below it
_MOST_VISITED_FOLDERS = 500
_DEEPEST_FOLDER = 3
_INSIDE_A_STORE = re.compile(rf"(?P<store>.+)/(?:{STORE_MARKER}|(?:spectra|parts|runs|alignments|sums)/.+)")


def mark_store(store: Store) -> None:
    """Write the marker if there is none. A local disk and S3 write it once, whatever runs at the same time.

    Raises
    ------
    StoreError : the store cannot be written, or a later version wrote the marker
    """
    if not _is_marked(store):
        store.create(STORE_MARKER, _CONTENT)


def require_store(store: Store) -> None:
    """Check that the place is a store: it has the marker, or objects that Eigenmerge wrote. Writes nothing.

    Raises
    ------
    NoStoreError : it is not; names a store above or below it, if one is found
    StoreError : it cannot be read, or a later version wrote its marker
    """
    if _is_marked(store) or _has_own_objects(store):
        return
    near = next((place for place in (*_stores_above(store), *_stores_below(store))), None)
    hint = f"; did you mean {near}?" if near is not None else "; give the place that merges use with --store"
    raise NoStoreError(f"{store.display('')}: no store here{hint}")


def _is_marked(store: Store) -> bool:
    name = store.display(STORE_MARKER)
    try:
        data, _ = store.read_head(STORE_MARKER, _LONGEST_MARKER_BYTES)
    except ObjectNotFoundError:
        return False
    except StoreError as error:
        if isinstance(error.__cause__, NotADirectoryError):  # the place is a file
            return False
        raise
    try:
        version = parse_json_object(data, name, _LONGEST_MARKER_BYTES).get(_FIELD)
    except CheckpointError:
        version = None
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{name}: is not the marker of a store that this version reads; use the version of Eigenmerge that wrote"
            " the store, or another store"
        )
    return True


def _has_own_objects(store: Store) -> bool:
    """Return whether an object of ours is among the first objects of the folders of a store."""
    for folder in (RUNS, PARTS, SPECTRA, ALIGNMENTS, SUMS):
        candidates = (info.key for info in store.list(folder) if kind_of(info.key) is not None)
        if any(is_ours(store, key) for key in islice(candidates, _MOST_TRIED_OBJECTS)):
            return True
    return False


def _stores_above(store: Store) -> Iterator[str]:
    place = store.root_uri
    while True:
        parent, separator, _ = place.rpartition("/")
        if not separator or not parent or parent.endswith(("/", ":")):
            return
        place = parent
        if _is_store(store, place):
            yield store.at(place).display("")


def _stores_below(store: Store) -> Iterator[str]:
    found = _local_folders(store) if store.is_local else _remote_folders(store)
    for place in found:
        if _is_store(store, place):
            yield store.at(place).display("")


def _is_store(store: Store, place: str) -> bool:
    try:
        other = store.at(place)
        return _is_marked(other) or _has_own_objects(other)
    except StoreError:  # a place that may not be read is not suggested
        return False


def _local_folders(store: Store) -> Iterator[str]:
    """Yield folders below the place, those nearest to it first."""
    waiting = deque([(store.root_uri, 0)])
    for _ in range(_MOST_VISITED_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        try:
            with os.scandir(folder) as entries:
                below = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
        for path in below:
            if Path(path, STORE_MARKER).is_file() or Path(path, RUNS).is_dir():
                yield path
        if depth < _DEEPEST_FOLDER - 1:
            waiting.extend((path, depth + 1) for path in below)


def _remote_folders(store: Store) -> Iterator[str]:
    """Yield prefixes below the place that have a folder of a store, of the first objects that are listed."""
    seen: set[str] = set()
    for info in islice(store.list(""), _MOST_LISTED_OBJECTS):
        match = _INSIDE_A_STORE.fullmatch(info.key)
        if match is not None and match["store"] not in seen:
            seen.add(match["store"])
            yield store.uri(match["store"])
