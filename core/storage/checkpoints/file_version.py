"""The state of a model's files when they were listed, and the check that a file is still in that state.

A local file is unchanged if inode, size and both times are equal. The time of the last change (ctime) is set by the
system and cannot be set back, so a file that was rewritten in place and got its old modification time again is noticed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import stat
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path

from ...errors import CheckpointError, EigenmergeError, ObjectChangedError, ObjectNotFoundError
from ...formats.digest import hash_bytes
from ...formats.redaction import redact
from ...listing import FileVersion
from ..addresses import protocol_of
from ..object_hash import hash_object
from ..object_header import read_header
from ..store import ObjectInfo, Store, locate_object
from .samples import COMPLETE, digest_file

State = tuple[int, int, int]  # as `FileVersion.stat`

_USUAL_STEP_NS = 20 * 10**6
_LONGEST_STEP_NS = 2 * 10**9


def observe_file(store: Store, key: str, listed: ObjectInfo | None = None) -> FileVersion:
    """Return the current state of a file, without a digest of its content.

    Cost: a stat, or one request where the storage is remote.

    Parameters
    ----------
    listed : what a listing of the folder says; saves the request on the Hub, where a commit cannot change, and on S3,
        where each read compares the etag

    Raises
    ------
    ObjectNotFoundError : no such file
    """
    path = store.local_path(key)
    if path is not None:
        with store.translate_errors("looking up", key):
            status = _settled_status(path)
        return FileVersion(status.st_size, stat=_state(status), machine=this_machine())
    if listed is not None and protocol_of(store.root_uri) == "hf":
        return FileVersion(listed.size)
    info = listed if listed is not None and store.backend.checks_etag else store.info(key)
    return FileVersion(info.size, info.etag)


def _settled_status(path: Path) -> os.stat_result:
    """Return the status of a file when a write after now gives it another time.

    File systems count time in steps, of up to 10 ms on Linux; of 1 or 2 s where times are whole seconds. Two writes
    within a step have the same time, so a file that was written in this step is looked at again after it.
    """
    status = path.stat()
    step = _LONGEST_STEP_NS if status.st_ctime_ns % 10**9 == 0 else _USUAL_STEP_NS
    age = time.time_ns() - status.st_ctime_ns
    if 0 <= age < step:
        time.sleep((step - age) / 1e9)
        status = path.stat()
    return status


def check_unchanged(store: Store, key: str, version: FileVersion) -> None:
    """Check that a file is in the state that `observe_file` returned, after it was read with the etag of that state.

    Raises
    ------
    ObjectChangedError : it is not
    ObjectNotFoundError : no such file
    """
    if version.stat is None:
        store.check_unchanged(key, version.etag)
    elif observe_file(store, key) != version:
        raise ObjectChangedError(f"{store.display(key)} was replaced or rewritten")


def observe_small_file(uri: str, storage_options: Mapping[str, object] | None) -> FileVersion:
    """Return the state of a small file that `read_unchanged` reads later. A local one is read, to hash it."""
    store, key = locate_object(uri, storage_options)
    if store.local_path(key) is None:
        return FileVersion(0) if protocol_of(uri) == "hf" else observe_file(store, key)
    data = store.read(key)
    return FileVersion(len(data), digest=COMPLETE + hash_bytes(data))


def read_unchanged(uri: str, version: FileVersion | None, storage_options: Mapping[str, object] | None) -> bytes:
    """Read a complete small file that must be in the state of `observe_small_file`; None is not checked.

    Raises
    ------
    CheckpointError : it is not, or it is gone
    """
    store, key = locate_object(uri, storage_options)
    try:
        data = store.read(key)
        if version is not None and version.etag and store.info(key).etag != version.etag:
            raise ObjectChangedError("it was replaced by another object")
    except (ObjectNotFoundError, ObjectChangedError) as error:
        raise changed_error(uri, str(error)) from None
    if version is not None and version.digest and version.digest != COMPLETE + hash_bytes(data):
        raise changed_error(uri, "it has another content")
    return data


def changed_error(uri: str, found: str) -> CheckpointError:
    """Return the error about an input file that is not what was planned."""
    return CheckpointError(f"{redact(uri)} has changed since the plan was made: {found}; run the merge again")


@contextlib.contextmanager
def open_unchanged(path: Path, version: FileVersion | None) -> Generator[int]:
    """Open a local file that must be in the state `version`, at the beginning and at the end of the block.

    Yields the file descriptor. What the block copies from the file is then what was listed. Mapped memory would not do:
    it can change, or vanish, at any later time.

    Raises
    ------
    ObjectChangedError : the file is in another state, and its content is not certainly the same
    OSError : the file cannot be opened
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectChangedError("it is not a regular file")
        if version is not None and version.stat is not None:
            _check_state(path, status, version)
        yield descriptor
        if version is not None and _state(os.fstat(descriptor)) != _state(status):
            raise ObjectChangedError("it was rewritten while it was read")
    finally:
        os.close(descriptor)


def _check_state(path: Path, status: os.stat_result, version: FileVersion) -> None:
    state = _state(status)
    if status.st_size == version.size and state == version.stat:
        return
    if status.st_size != version.size:
        raise ObjectChangedError(f"it has {status.st_size} bytes, and had {version.size}")
    assert version.stat is not None
    # On this machine other times mean a rewritten file, unless a hash of all bytes says otherwise (chmod, a hard link).
    # Another inode alone does not: some network file systems number files anew. Another machine may have a copy.
    is_sure = version.digest.startswith(COMPLETE)
    may_be_equal = is_sure or version.machine != this_machine() or state[1:] == version.stat[1:]
    if not (may_be_equal and version.digest and _digest_at(str(path), state, is_sure) == version.digest):
        raise ObjectChangedError("it was replaced or rewritten")


@functools.lru_cache(maxsize=4096)
def _digest_at(path: str, state: State, complete: bool) -> str:
    """Return the digest of a file in a state, computed once per process; "" if it changes meanwhile."""
    store, key = locate_object(path)
    try:
        size = store.info(key).size
        digest = (
            COMPLETE + hash_object(store, key, size)
            if complete
            else digest_file(store, key, read_header(store, key, size), "", complete=False)
        )
        return digest if _state(Path(path).stat()) == state else ""
    except (EigenmergeError, OSError):
        return ""


def _state(status: os.stat_result) -> State:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


@functools.cache
def this_machine() -> str:
    """Identify this machine, or this container, until it boots again."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return f"{socket.gethostname()} {uuid.getnode()}"
