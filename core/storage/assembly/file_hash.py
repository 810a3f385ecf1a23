"""SHA-256 of a file that is joined from parts, computed in the background while later parts are still being written.

Hashing takes longer than joining. Started with the first part, it adds no time to a run.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from ..object_ranges import ObjectRange, split_ranges
from ..store import Store

_CHUNK_BYTES = 2**20  # fits the cache of the processor


@final
class FileHash:
    """Hashes a header and then ranges of objects, in the order in which they are added, in a background thread.

    For local stores, where recently written parts are still in memory. A remote store would have to send them.
    """

    def __init__(self, source: Store, header: bytes) -> None:
        self._source = source
        self._hash = hashlib.sha256(header)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="file-hash")
        self._pending: list[Future[None]] = []

    def add(self, key: str, start: int, stop: int) -> None:
        """Append bytes [start, stop) of an object to the file; returns immediately."""
        self._pending.append(self._pool.submit(self._update, (key, start, stop)))

    def result(self) -> str:
        """Wait for all ranges and return the hash, hexadecimal.

        Raises
        ------
        StoreError : a range could not be read
        """
        self._pool.shutdown()
        for future in self._pending:
            future.result()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Cancel pending ranges."""
        self._pool.shutdown(cancel_futures=True)

    def _update(self, added: ObjectRange) -> None:
        for chunk in split_ranges([added], _CHUNK_BYTES):
            self._hash.update(self._source.read_range(*chunk))
