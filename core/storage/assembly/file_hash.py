"""SHA-256 of a file that is joined from parts, computed in the background while later parts are still being written.

Hashing takes longer than joining. Started with the first part, it adds no time to a run.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from ..object_ranges import ObjectRange, split_ranges
from ..store import Store
from .part_check import DamagedPartError, PartCheck, TensorBytes

_CHUNK_BYTES = 2**20  # fits the cache of the processor


@final
class FileHash:
    """Hashes a header and then ranges of objects, in the order in which they are added, in a background thread.

    The same bytes are compared with the CRC-32 that was computed with them, which costs a third of the hash or less.
    Where it is not known, they are compared with the hashes of their tensors in a second thread.

    For local stores, where recently written parts are still in memory. A remote store would have to send them.
    """

    def __init__(self, source: Store, header: bytes) -> None:
        self._source = source
        self._hash = hashlib.sha256(header)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="file-hash")
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="part-check")
        self._pending: list[Future[None]] = []

    def add(
        self, key: str, start: int, stop: int, tensors: Sequence[TensorBytes] = (), crc32: int | None = None
    ) -> None:
        """Append bytes [start, stop) of an object to the file; returns immediately.

        Parameters
        ----------
        tensors : what the bytes must be; empty: they are not compared
        crc32 : of the bytes; None: not known
        """
        self._pending.append(self._pool.submit(self._update, (key, start, stop), tensors, crc32))
        if tensors and crc32 is None:
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

    def _update(self, added: ObjectRange, tensors: Sequence[TensorBytes], crc32: int | None) -> None:
        found = 0
        for chunk in split_ranges([added], _CHUNK_BYTES):
            data = self._source.read_range(*chunk)
            self._hash.update(data)
            if crc32 is not None:
                found = zlib.crc32(data, found)
        if crc32 is not None and found != crc32:
            self._check(added, tensors)  # names the tensor
            raise DamagedPartError(f"{self._source.display(added[0])}: its bytes differ from read to read")

    def _check(self, added: ObjectRange, tensors: Sequence[TensorBytes]) -> None:
        check = PartCheck(self._source.display(added[0]), tensors)
        for chunk in split_ranges([added], _CHUNK_BYTES):
            check.update(self._source.read_range(*chunk))
        check.finish()
