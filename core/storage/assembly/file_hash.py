"""SHA-256 of a file that is joined from parts, computed in the background while later parts are still being written.

Hashing takes longer than joining. Started with the first part, it adds no time to a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from ..object_ranges import ObjectRange, split_ranges
from ..store import Store
from .part_check import PartCheck, TensorBytes

_CHUNK_BYTES = 2**20  # fits the cache of the processor


@final
class FileHash:
    """Hashes a header and then ranges of objects, in the order in which they are added, in a background thread.

    The bytes are compared with the hashes of their tensors in a second thread, so that this takes no longer.

    For local stores, where recently written parts are still in memory. A remote store would have to send them.
    """

    def __init__(self, source: Store, header: bytes) -> None:
        self._source = source
        self._hash = hashlib.sha256(header)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="file-hash")
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="part-check")
        self._pending: list[Future[None]] = []

    def add(self, key: str, start: int, stop: int, tensors: Sequence[TensorBytes] = ()) -> None:
        """Append bytes [start, stop) of an object to the file; returns immediately.

        Parameters
        ----------
        tensors : what the bytes must be; empty: they are not compared
        """
        self._pending.append(self._pool.submit(self._update, (key, start, stop)))
        if tensors:
            self._pending.append(self._checks.submit(self._check, (key, start, stop), tensors))

    def result(self) -> str:
        """Wait for all ranges and return the hash, hexadecimal.

        Raises
        ------
        DamagedPartError : a tensor has other bytes
        StoreError : a range could not be read
        """
        self._pool.shutdown()
        self._checks.shutdown()
        for future in self._pending:
            future.result()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Cancel pending ranges."""
        self._pool.shutdown(cancel_futures=True)
        self._checks.shutdown(cancel_futures=True)

    def _update(self, added: ObjectRange) -> None:
        for chunk in split_ranges([added], _CHUNK_BYTES):
            self._hash.update(self._source.read_range(*chunk))

    def _check(self, added: ObjectRange, tensors: Sequence[TensorBytes]) -> None:
        check = PartCheck(self._source.display(added[0]), tensors)
        for chunk in split_ranges([added], _CHUNK_BYTES):
            check.update(self._source.read_range(*chunk))
        check.finish()
