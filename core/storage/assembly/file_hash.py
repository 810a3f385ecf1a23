"""The SHA-256 of a file that is joined from parts, computed while later parts are still being made.

Hashing takes longer than copying. Begun with the first part instead of after the last one, it costs a run no time.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from ..store import Store

_CHUNK_BYTES = 2**20  # stays in the processor's cache


@final
class FileHash:
    """Hashes a header, then ranges of objects in the order in which they are added, in a thread of its own.

    For local stores: the parts have just been written and are read from memory. A remote store would send them all.
    """

    def __init__(self, source: Store, header: bytes) -> None:
        self._source = source
        self._digest = hashlib.sha256(header)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="file-hash")
        self._pending: list[Future[None]] = []

    def add(self, key: str, start: int, stop: int) -> None:
        """The next range of the file; returns at once."""
        self._pending.append(self._pool.submit(self._hash, key, start, stop))

    def result(self) -> str:
        """Wait for all ranges; hexadecimal. A `StoreError` of reading is raised here."""
        self._pool.shutdown()
        for future in self._pending:
            future.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Stop; for a run that is given up."""
        self._pool.shutdown(cancel_futures=True)

    def _hash(self, key: str, start: int, stop: int) -> None:
        for position in range(start, stop, _CHUNK_BYTES):
            self._digest.update(self._source.read_range(key, position, min(position + _CHUNK_BYTES, stop)))
