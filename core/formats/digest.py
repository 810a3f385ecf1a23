"""Hash of JSON-able content: the ground of every key and fingerprint."""

from __future__ import annotations

import hashlib
import json

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def digest(content: object) -> str:
    """Hash of JSON-able content; equal content gives equal text whatever the order of its mappings."""
    return hashlib.sha256(_ENCODER.encode(content).encode()).hexdigest()
