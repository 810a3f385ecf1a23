"""Files joined on one machine: the kernel copies, this process only says from where to where."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...errors import CorruptObjectError
from ..backends.local_backend import LocalWriter

_COPY_BYTES = 256 * 2**20  # one call; also how often an interrupt is noticed
_HASH_BYTES = 2**20  # stays in the processor's cache
# What says "not here" rather than "not possible": other file systems, old kernels, network mounts.
_UNSUPPORTED = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM})

FileRange = tuple[Path, int, int]


def concatenate_files(
    path: Path, header: bytes, ranges: Sequence[FileRange], *, hashed: bool
) -> tuple[str | None, int]:
    """Write a file from a header and ranges of other files; its sha256 and the bytes that passed through here.

    copy_file_range shares blocks where the file system can (Btrfs, XFS) and copies inside the kernel elsewhere. The
    hash is made from the parts, which are in the page cache, in a second thread while the copy runs.

    Not synchronised to disk before the rename, unlike other objects: that would make it several times slower than `cp`.
    A machine that loses power within seconds may leave a file that fails its checksum in the manifest.
    """
    writer = LocalWriter(path, durable=False)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
            digest = pool.submit(_hash, header, ranges) if hashed else None
            writer.write(header)
            through = len(header) + sum(_copy(source, start, stop, writer) for source, start, stop in ranges)
        sha256 = digest.result() if digest is not None else None
    except BaseException:
        writer.abort()
        raise
    writer.commit()
    return sha256, through


def _copy(path: Path, start: int, stop: int, writer: LocalWriter) -> int:
    """Append a range of a file; the bytes that had to pass through this process."""
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
        through = stop - position
        while position < stop:
            chunk = os.pread(descriptor, min(stop - position, 16 * _HASH_BYTES), position)
            if not chunk:
                raise CorruptObjectError(f"{path} became shorter while it was copied")
            writer.write(chunk)
            position += len(chunk)
        return through
    finally:
        os.close(descriptor)


def _copy_file_range(source: int, target: int, position: int, count: int) -> int:
    function: Callable[..., int] | None = getattr(os, "copy_file_range", None)
    if function is None:
        raise OSError(errno.ENOSYS, "no copy_file_range here")
    return function(source, target, count, position)


def _sendfile(source: int, target: int, position: int, count: int) -> int:
    return os.sendfile(target, source, position, count)


def _hash(header: bytes, ranges: Sequence[FileRange]) -> str:
    digest = hashlib.sha256(header)
    buffer = bytearray(_HASH_BYTES)
    view = memoryview(buffer)
    for path, start, stop in ranges:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            position = start
            while position < stop:
                count = file.readinto(view[: min(_HASH_BYTES, stop - position)])
                if not count:
                    raise CorruptObjectError(f"{path} is too short: {position} bytes, expected at least {stop}")
                digest.update(view[:count])
                position += count
    return digest.hexdigest()
