"""SHA-256 of JSON content, text and bytes, in hexadecimal: the basis of all keys, fingerprints and checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def hash_json(content: object) -> str:
    """Hash content that JSON can represent. Equal content gives an equal hash; the order of mappings is ignored."""
    return hash_text(_ENCODER.encode(content))


def hash_text(text: str) -> str:
    """Hash text as UTF-8."""
    return hash_bytes(text.encode())


def hash_bytes(data: Buffer) -> str:
    """Hash the bytes of a buffer: bytes, a memoryview, or a contiguous NumPy array."""
    return hashlib.sha256(data).hexdigest()


def hash_chunks(chunks: Iterable[Buffer]) -> str:
    """Hash the bytes of several buffers as if they were one."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
    return sha256.hexdigest()
