"""Read the header of a safetensors file in a store."""

from __future__ import annotations

from ..formats.safetensors_header import LENGTH_BYTES, SafetensorsHeader, header_length, parse_header
from .store import Store

# Most headers are shorter: one request. A longer one takes a second request.
_FIRST_READ_BYTES = 64 * 2**10


def read_header(store: Store, key: str, file_size: int | None = None, etag: str = "") -> SafetensorsHeader:
    """Read and check the header of a safetensors file; no tensor data is needed.

    Parameters
    ----------
    file_size : int, optional
        Size of the file in bytes where it is known from a listing; saves a request on stores other than S3
    etag : as for `Store.read_range`; needs `file_size`, and the caller calls `Store.check_unchanged`

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : the object is shorter than `file_size`
    CheckpointError : not a safetensors file, or a damaged one
    """
    name = store.display(key)
    if file_size is None:
        data, file_size = store.read_head(key, _FIRST_READ_BYTES)
    else:
        data = store.read_range(key, 0, min(file_size, _FIRST_READ_BYTES), etag)
    needed = LENGTH_BYTES + header_length(data, file_size, name)
    if needed > len(data):
        data += store.read_range(key, len(data), needed, etag)
    return parse_header(data, file_size, name)
