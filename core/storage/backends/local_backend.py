"""A store on a local or mounted disk: temporary file in the same directory, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import CorruptObjectError, StoreError
from .protocol import ObjectInfo, RequestRunner

# The writer holds a lock on its temporary file: who can take that lock has found the file of a dead process.
_TEMPORARY_PREFIX = ".eigenmerge-"
_TEMPORARY_SUFFIX = ".partial"
_SURELY_ABANDONED_SECONDS = 6 * 3600.0


class LocalBackend:
    """Files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def info(self, key: str) -> ObjectInfo:
        return _object_info(key, self._regular(self.path(key).stat(), key))

    def list(self, prefix: str, recursive: bool, run_request: RequestRunner) -> Iterator[ObjectInfo]:
        folder = self.path(prefix.rstrip("/")) if prefix else self._root
        # A prefix that is itself an object holds none; a root that is a file is a mistake worth an error.
        absent = (FileNotFoundError, NotADirectoryError) if prefix else (FileNotFoundError,)
        with contextlib.suppress(*absent):
            yield from self._walk(folder, prefix, recursive)

    def _walk(self, folder: Path, prefix: str, recursive: bool) -> Iterator[ObjectInfo]:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                # A file may go between scandir and stat: another run's temporary name, or a gc.
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        if recursive:
                            yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", recursive)
                    elif entry.is_file() and not _is_temporary(entry.name):
                        # Links to files are followed: the Hub's cache consists of them.
                        yield _object_info(prefix + entry.name, entry.stat())

    def read(self, key: str) -> bytes:
        with self._open(key) as descriptor:
            return _read_at(descriptor, 0, os.fstat(descriptor).st_size)

    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        with self._open(key) as descriptor:
            return _read_at(descriptor, 0, num_bytes), os.fstat(descriptor).st_size

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with self._open(key) as descriptor:
            data = _read_at(descriptor, start, stop - start)
            if len(data) != stop - start:
                raise CorruptObjectError(
                    f"{self.path(key)} is too short: {os.fstat(descriptor).st_size} bytes, expected at least {stop}"
                )
            return data

    def write(self, key: str, data: bytes | memoryview) -> None:
        writer = LocalWriter(self.path(key))
        try:
            writer.write(data)
        except BaseException:
            writer.abort()
            raise
        writer.commit()

    def create(self, key: str, data: bytes, writer: str, first_attempt: bool) -> bool:
        file = LocalWriter(self.path(key))
        try:
            file.write(data)
        except BaseException:
            file.abort()
            raise
        return file.commit_new()

    def open_write(self, key: str, run_request: RequestRunner) -> LocalWriter:
        return LocalWriter(self.path(key))

    def delete(self, keys: Sequence[str], run_request: RequestRunner) -> None:
        for key in keys:
            self.path(key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        return self.path(key)

    def remove_abandoned(self, older_than_seconds: float, run_request: RequestRunner) -> int:
        """Remove temporary files whose writer is gone: nobody holds their lock, and nobody wrote to them lately."""
        removed = 0
        for folder, _, names in os.walk(self._root):
            for name in filter(_is_temporary, names):
                with contextlib.suppress(OSError):
                    removed += _remove_if_abandoned(Path(folder, name), older_than_seconds)
        return removed

    def path(self, key: str) -> Path:
        return self._root / key

    @contextlib.contextmanager
    def _open(self, key: str) -> Iterator[int]:
        # O_NONBLOCK changes nothing for files; a named pipe would wait for a writer before it can be refused.
        descriptor = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._regular(os.fstat(descriptor), key)
            yield descriptor
        finally:
            os.close(descriptor)

    def _regular(self, status: os.stat_result, key: str) -> os.stat_result:
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{self.path(key)} is not a regular file")
        return status


class LocalWriter:
    """A temporary file beside its final name.

    A machine that loses power right after `commit` keeps either the old object or the whole new one: the file is
    synchronised before the rename. The directory is not, so the new name itself may be lost, and is written again.
    """

    def __init__(self, path: Path, durable: bool = True) -> None:
        self._path = path
        self._durable = durable
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
        self.descriptor, self._temporary = _create_locked(path.parent)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        rest = memoryview(chunk).cast("B")
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def commit(self) -> None:
        with self._finished():
            self._temporary.replace(self._path)

    def commit_new(self) -> bool:
        """Commit unless the name is taken; whether it was free."""
        with self._finished():
            try:
                os.link(self._temporary, self._path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                    raise
                # No hard links here (exFAT, some network mounts): the check is not atomic, the commit still is.
                if self._path.exists():
                    return False
                self._temporary.replace(self._path)
            return True

    def abort(self) -> None:
        """Drop what was not committed. A second call does nothing: the number may be another file's by then."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            self._temporary.unlink(missing_ok=True)
            os.close(descriptor)

    @contextlib.contextmanager
    def _finished(self) -> Iterator[None]:
        try:
            if self._durable:
                os.fsync(self.descriptor)
            yield
        finally:
            self.abort()  # after a rename there is nothing of that name left to remove


def _create_locked(folder: Path) -> tuple[int, Path]:
    while True:
        path = folder / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between open and lock another process may have taken the file for abandoned.
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)


def _remove_if_abandoned(path: Path, older_than_seconds: float) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # file systems without locks: only age tells
            older_than_seconds = max(older_than_seconds, _SURELY_ABANDONED_SECONDS)
        if time.time() - os.fstat(descriptor).st_mtime < older_than_seconds:
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY_PREFIX) and name.endswith(_TEMPORARY_SUFFIX)


def _object_info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, str(status.st_mtime_ns), status.st_mtime)


def _read_at(descriptor: int, start: int, length: int) -> bytes:
    """Up to `length` bytes from `start`; one read returns at most 2 GiB on Linux."""
    data = os.pread(descriptor, length, start)
    if len(data) == length or not data:
        return data
    pieces = [data]
    while length > sum(map(len, pieces)):
        piece = os.pread(descriptor, length - sum(map(len, pieces)), start + sum(map(len, pieces)))
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)
