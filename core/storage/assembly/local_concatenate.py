"""Join ranges of local files to one file; the kernel copies the data."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...errors import CorruptObjectError, ObjectNotFoundError
from ...formats.digest import hash_chunks
from ..backends.local_backend import LocalWriter
from .part_check import PartCheck, TensorBytes

FileRange = tuple[Path, int, int]  # path, start, stop: bytes [start, stop) of one file

_COPY_BYTES = 256 * 2**20  # per call; also the interval at which an interrupt is noticed
_READ_BYTES = 16 * 2**20
_HASH_BYTES = 2**20  # fits the cache of the processor
# The kernel cannot copy between these files: two file systems, an old kernel, a network mount.
_UNSUPPORTED = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM})


def concatenate_files(
    path: Path,
    header: bytes,
    ranges: Sequence[FileRange],
    *,
    hashed: bool,
    tensors: Sequence[Sequence[TensorBytes]] = (),
) -> tuple[str | None, int]:
    """Write a file from a header and ranges of other files.

    copy_file_range shares blocks where the file system can (Btrfs, XFS) and else copies inside the kernel. The hash is
    computed from the source files, which are usually in the page cache, in a second thread.

    The file is not synced to disk before the rename, unlike other objects: a sync would take several times as long as
    `cp`. If the machine loses power within seconds, the file may fail its checksum in the manifest.

    Parameters
    ----------
    hashed : bool
        Compute the SHA-256 of the file, and compare the tensors
    tensors : for each range, the tensors whose bytes it must have; empty: they are not compared

    Returns
    -------
    sha256 : str or None, hexadecimal
    bytes_transferred : int, bytes that passed through this process instead of the kernel

    Raises
    ------
    DamagedPartError : the bytes of a tensor are not those that were computed
    ObjectNotFoundError : a source file does not exist
    CorruptObjectError : a source file is shorter than its range
    OSError : reading or writing failed; no partial file is left
    """
    missing = next((source for source, _, _ in ranges if not source.exists()), None)
    if missing is not None:
        raise ObjectNotFoundError(f"{missing} does not exist")
    writer = LocalWriter(path, durable=False)
    try:
        with ThreadPoolExecutor(2, thread_name_prefix="hash") as pool:
            pending = pool.submit(hash_chunks, _read_chunks(header, ranges)) if hashed else None
            checked = pool.submit(_compare, ranges, tensors) if hashed and tensors else None
            writer.write(header)
            transferred = len(header) + sum(_append(source, start, stop, writer) for source, start, stop in ranges)
        if checked is not None:
            checked.result()
        sha256 = pending.result() if pending is not None else None
    except BaseException:
        writer.abort()
        raise
    writer.commit()
    return sha256, transferred


def _compare(ranges: Sequence[FileRange], tensors: Sequence[Sequence[TensorBytes]]) -> None:
    for piece, expected in zip(ranges, tensors, strict=True):
        check = PartCheck(str(piece[0]), expected)
        for chunk in _read_chunks(b"", [piece]):
            check.update(chunk)
        check.finish()


def _append(path: Path, start: int, stop: int, writer: LocalWriter) -> int:
    """Append a range of a file, and return the number of bytes that the kernel could not copy."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size < stop:
            raise CorruptObjectError(f"{path} is too short: {size} bytes, expected at least {stop}")
        position = start
        for copy in (_copy_file_range, _sendfile):
            try:
                while position < stop:
                    copied = copy(descriptor, writer.descriptor, position, min(stop - position, _COPY_BYTES))
                    if copied == 0:
                        break
                    position += copied
                break
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        transferred = stop - position
        while position < stop:
            chunk = os.pread(descriptor, min(stop - position, _READ_BYTES), position)
            if not chunk:
                raise CorruptObjectError(f"{path} was truncated to {position} bytes while it was copied")
            writer.write(chunk)
            position += len(chunk)
        return transferred
    finally:
        os.close(descriptor)


def _copy_file_range(source: int, target: int, position: int, count: int) -> int:
    function: Callable[..., int] | None = getattr(os, "copy_file_range", None)
    if function is None:
        raise OSError(errno.ENOSYS, "copy_file_range is not available")
    return function(source, target, count, position)


def _sendfile(source: int, target: int, position: int, count: int) -> int:
    return os.sendfile(target, source, position, count)


def _read_chunks(header: bytes, ranges: Sequence[FileRange]) -> Iterator[bytes | memoryview]:
    """Yield the header and the content of the ranges. Each chunk is valid until the next one: the buffer is reused."""
    yield header
    buffer = memoryview(bytearray(_HASH_BYTES))
    for path, start, stop in ranges:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            position = start
            while position < stop:
                count = file.readinto(buffer[: min(_HASH_BYTES, stop - position)])
                if not count:
                    raise CorruptObjectError(f"{path} is too short: {position} bytes, expected at least {stop}")
                yield buffer[:count]
                position += count
