"""Checks for relative names from outside (indexes, recipes, adapters): a name must stay below the root of a store."""

from __future__ import annotations

from ..errors import StoreError

_LONGEST_KEY_BYTES = 1024  # limit of S3
_LONGEST_COMPONENT_BYTES = 255  # limit of common file systems


def check_key(key: str) -> str:
    """Return `key` if it is a safe relative name in any store.

    Raises
    ------
    StoreError : the name is empty, absolute or too long; has an empty, `.` or `..` component, a backslash or control
        characters; or fsspec would read it as an address (`?versionId=`, `::`, `://`)
    """
    problem = find_key_problem(key)
    if problem is not None:
        raise StoreError(
            f"object name {key[:200]!r} is refused: {problem}; expected a relative name such as 'a/b.json'"
        )
    return key


def find_key_problem(key: str) -> str | None:
    """Return why `key` is not a safe relative name, or None if it is one."""
    if not key:
        return "it is empty"
    if any(ord(char) < 32 or ord(char) == 127 for char in key):
        return "it contains control characters"
    try:
        num_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if num_bytes > _LONGEST_KEY_BYTES:
        return f"it is {num_bytes} bytes long, more than {_LONGEST_KEY_BYTES}"
    if "\\" in key:
        return "it contains a backslash"
    if "?versionId=" in key or "::" in key or "://" in key:
        return "it is an address, not a name"
    components = key.split("/")
    if key.startswith(("/", "~")) or (len(components[0]) == 2 and components[0][1] == ":"):
        return "it is absolute"
    if any(component in {"", ".", ".."} for component in components):
        return "it has an empty, '.' or '..' component"
    if any(len(component.encode()) > _LONGEST_COMPONENT_BYTES for component in components):
        return f"a component is longer than {_LONGEST_COMPONENT_BYTES} bytes"
    return None
