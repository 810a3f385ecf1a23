"""Names that come from outside (indexes, recipes, adapters) and may not leave the place they belong to."""

from __future__ import annotations

from ..errors import StoreError

_LONGEST_KEY_BYTES = 1024  # S3
_LONGEST_PART_BYTES = 255  # every common file system


def check_key(key: str) -> str:
    """`key` itself when it stays under the root of any store; `StoreError` otherwise.

    Refused: empty names, absolute names, empty, `.` and `..` components, backslashes, control characters, names longer
    than a store takes, and what fsspec reads as something else than a name (`?versionId=`, `::`, `://`).
    """
    problem = find_key_problem(key)
    if problem is not None:
        raise StoreError(
            f"object name {key[:200]!r} is refused: {problem}; expected a relative name such as 'a/b.json'"
        )
    return key


def find_key_problem(key: str) -> str | None:
    """Why `key` is not a safe relative name, or None."""
    if not key:
        return "it is empty"
    if any(ord(char) < 32 or ord(char) == 127 for char in key):
        return "it holds control characters"
    try:
        num_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if num_bytes > _LONGEST_KEY_BYTES:
        return f"it is {num_bytes} bytes long, more than {_LONGEST_KEY_BYTES}"
    if "\\" in key:
        return "it holds a backslash"
    if "?versionId=" in key or "::" in key or "://" in key:
        return "it is an address, not a name"
    parts = key.split("/")
    if key.startswith(("/", "~")) or (len(parts[0]) == 2 and parts[0][1] == ":"):
        return "it is absolute"
    if any(part in {"", ".", ".."} for part in parts):
        return "it has an empty, '.' or '..' component"
    if any(len(part.encode()) > _LONGEST_PART_BYTES for part in parts):
        return f"a component is longer than {_LONGEST_PART_BYTES} bytes"
    return None
