"""Small JSON objects that people read and we check: the content, and beside it the sha256 of its canonical form."""

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
    """Write `content`, which has no key "sha256" of its own."""
    assert _CHECKSUM not in content
    plain = json.loads(json.dumps(dict(content)))  # as it will be read: tuples become lists
    store.write(key, (json.dumps({**plain, _CHECKSUM: hash_json(plain)}, indent=1) + "\n").encode())


def read_sealed_json(store: Store, key: str) -> dict[str, Any]:
    """What `write_sealed_json` wrote.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated, changed, or something else
    """
    name = store.display(key)
    try:
        content: dict[str, Any] = parse_json_object(store.read(key), name, LONGEST_INDEX_BYTES)
    except CheckpointError as error:
        raise CorruptObjectError(str(error)) from None
    if content.pop(_CHECKSUM, None) != hash_json(content):
        raise CorruptObjectError(f"{name}: fails its checksum")
    return content
