"""Read a small object, and refuse one that is larger than any of its kind: others may be able to write to the place."""

from __future__ import annotations

from ..errors import CorruptObjectError
from .store import Store


def read_bounded(store: Store, key: str, limit: int) -> bytes:
    """Return the content of an object of at most `limit` bytes. One request; two on storage without ranges.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : it is larger
    """
    if store.is_local or store.backend.checks_etag:
        data, size = store.read_head(key, limit)
    else:  # size and content would come from two requests: a smaller object could be cut
        size = store.info(key).size
        data = store.read(key) if size <= limit else b""
    if size > limit:
        raise CorruptObjectError(f"{store.display(key)}: {size} bytes, expected at most {limit}")
    return data
