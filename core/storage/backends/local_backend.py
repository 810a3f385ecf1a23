"""Backend for a local or mounted disk. Writes go to a temporary file in the same directory, then fsync and rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from ...errors import CorruptObjectError, StoreError
from .protocol import ObjectInfo, RequestRunner

# A writer holds a lock on its temporary file. If another process can take the lock, the writer is dead.
_TEMPORARY_PREFIX = ".eigenmerge-"
_TEMPORARY_SUFFIX = ".partial"
_TEMPORARY_NAME = re.compile(re.escape(_TEMPORARY_PREFIX) + "[0-9a-f]{16}" + re.escape(_TEMPORARY_SUFFIX))
_ABANDONED_AFTER_SECONDS = 6 * 3600.0  # on file systems without locks


class LocalBackend:
    """Files below the directory `root`."""

    checks_etag = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def info(self, key: str) -> ObjectInfo:
        return _object_info(key, self._check_is_file(self.path(key).stat(), key))

    def list(self, prefix: str, recursive: bool, run_request: RequestRunner) -> Iterator[ObjectInfo]:
        folder = self.path(prefix.rstrip("/")) if prefix else self._root
        # A prefix that is an object has no objects below it. A root that is a file is an error of the user.
        absent = (FileNotFoundError, NotADirectoryError) if prefix else (FileNotFoundError,)
        with contextlib.suppress(*absent):
            yield from self._walk(folder, prefix, recursive)

    def _walk(self, folder: Path, prefix: str, recursive: bool) -> Iterator[ObjectInfo]:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                # A file may disappear between scandir and stat: another run renames or collects it.
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        if recursive:
                            yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", recursive)
                    elif entry.is_file() and not _is_temporary(entry.name):
                        # Links to files are followed: the cache of the Hub consists of them.
                        yield _object_info(prefix + entry.name, entry.stat())

    def read(self, key: str, limit: int) -> tuple[bytes, int]:
        return self.read_head(key, limit)

    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        with self._open(key) as descriptor:
            size = os.fstat(descriptor).st_size
            return _read_at(descriptor, 0, min(num_bytes, size)), size

    def read_range(self, key: str, start: int, stop: int, etag: str = "") -> bytes:
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

    def create(self, key: str, data: bytes, writer_id: str, first_attempt: bool) -> bool:
        writer = LocalWriter(self.path(key))
        try:
            writer.write(data)
        except BaseException:
            writer.abort()
            raise
        return writer.commit_if_absent()

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        with _locked_folder(self.path(key).parent):
            if self.read(key, len(expected)) != (expected, len(expected)):
                return False
            self.write(key, data)
            return True

    def open_write(self, key: str, run_request: RequestRunner) -> LocalWriter:
        return LocalWriter(self.path(key))

    def delete(self, keys: Sequence[str], run_request: RequestRunner) -> None:
        for key in keys:
            self.path(key).unlink(missing_ok=True)

    def local_path(self, key: str) -> Path | None:
        return self.path(key)

    def remove_abandoned(
        self, older_than_seconds: float, includes: Callable[[str], bool], recursive: bool, run_request: RequestRunner
    ) -> int:
        """Remove temporary files that no process holds a lock on and that were not written to recently."""
        removed = 0
        for folder, subfolders, names in os.walk(self._root):
            if not recursive:
                subfolders.clear()
            for path in (Path(folder, name) for name in filter(_is_temporary, names)):
                if includes(path.relative_to(self._root).as_posix()):
                    with contextlib.suppress(OSError):
                        removed += _remove_if_abandoned(path, older_than_seconds)
        return removed

    def path(self, key: str) -> Path:
        """Return the path of an object."""
        return self._root / key

    @contextlib.contextmanager
    def _open(self, key: str) -> Generator[int]:
        # O_NONBLOCK has no effect on files. Without it, opening a named pipe waits for a writer.
        descriptor = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._check_is_file(os.fstat(descriptor), key)
            yield descriptor
        finally:
            os.close(descriptor)

    def _check_is_file(self, status: os.stat_result, key: str) -> os.stat_result:
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{self.path(key)} is not a regular file; remove it or choose another location")
        return status


class LocalWriter:
    """Writes a temporary file in the directory of its final path.

    If the machine loses power after `commit`, either the old or the complete new object remains: the file is synced
    before the rename. The directory is not synced, so the new name may be lost; the object is then written again.

    Parameters
    ----------
    durable : bool
        False skips the sync
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
        with self._synced():
            self._temporary.replace(self._path)

    def commit_if_absent(self) -> bool:
        """Commit if there is no file at the path, and return whether it was committed."""
        with self._synced():
            try:
                os.link(self._temporary, self._path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                    raise
                # A file system without hard links (exFAT, some network mounts): only the rename is atomic.
                if self._path.exists():
                    return False
                self._temporary.replace(self._path)
            return True

    def abort(self) -> None:
        """Remove the temporary file. A second call does nothing."""
        # Cleared first: once closed, the number may belong to another file.
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            self._temporary.unlink(missing_ok=True)
            os.close(descriptor)

    @contextlib.contextmanager
    def _synced(self) -> Generator[None]:
        try:
            if self._durable:
                os.fsync(self.descriptor)
            yield
        finally:
            self.abort()  # after a rename, closes the file only


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Generator[None]:
    """Hold a lock on a folder, which one process at a time can hold; nothing on file systems without locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create_locked(folder: Path) -> tuple[int, Path]:
    while True:
        path = folder / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between open and lock, another process may have removed the file as abandoned.
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)


def _remove_if_abandoned(path: Path, older_than_seconds: float) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # file systems without locks: decide by age
            older_than_seconds = max(older_than_seconds, _ABANDONED_AFTER_SECONDS)
        if time.time() - os.fstat(descriptor).st_mtime < older_than_seconds:
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _is_temporary(name: str) -> bool:
    return _TEMPORARY_NAME.fullmatch(name) is not None


def _object_info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, str(status.st_mtime_ns), status.st_mtime)


def _read_at(descriptor: int, start: int, length: int) -> bytes:
    """Read up to `length` bytes from `start`. Loops, because one read returns at most 2 GiB on Linux."""
    data = os.pread(descriptor, length, start)
    if len(data) == length or not data:
        return data
    pieces, position = [data], start + len(data)
    while position < start + length:
        piece = os.pread(descriptor, start + length - position, position)
        if not piece:
            break
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)
