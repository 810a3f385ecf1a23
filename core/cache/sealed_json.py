"""Small JSON objects with a checksum of their content, readable by people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, CorruptObjectError
from ..formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ..formats.digest import hash_json
from ..storage.store import Store

_CHECKSUM = "sha256"


def write_sealed_json(store: Store, key: str, content: Mapping[str, object]) -> None:
    """Write `content` and, under "sha256", the hash of its canonical form; `content` must not have that key."""
    assert _CHECKSUM not in content
    parsed = json.loads(json.dumps(dict(content)))  # hash what a reader gets: tuples become lists
    store.write(key, (json.dumps({**parsed, _CHECKSUM: hash_json(parsed)}, indent=1) + "\n").encode())


def read_sealed_json(store: Store, key: str) -> dict[str, Any]:
    """Return the content that `write_sealed_json` wrote.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, or not such an object
    """
    name = store.display(key)
    try:
        data = store.read(key, LONGEST_INDEX_BYTES)
        content: dict[str, Any] = parse_json_object(data, name, LONGEST_INDEX_BYTES)
    except CheckpointError as error:
        raise CorruptObjectError(str(error)) from None
    if content.pop(_CHECKSUM, None) != hash_json(content):
        raise CorruptObjectError(f"{name}: fails its checksum")
    return content
