"""Store: named objects below one root, with the same operations on local disk, S3, memory and other fsspec backends.

An object is written completely or not at all, is read completely or in ranges, and its key cannot leave the root.
Transient errors are retried; all other errors become a `StoreError` that names the object.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar, final

from ..errors import CorruptObjectError, ObjectChangedError, ObjectNotFoundError, StoreError
from ..formats.object_names import check_key
from ..formats.redaction import find_secrets, redact
from ..formats.store_folders import PROBES
from .addresses import absolute_uri, is_local, is_web, join_address, protocol_of, select_options, split_address
from .backends.protocol import Backend, ObjectInfo, RequestRunner
from .object_writer import ObjectWriter
from .retries import RetryPolicy, call_with_retries
from .retries import translate_errors as translate_errors_to_store_errors

__all__ = ["ObjectInfo", "ObjectWriter", "Store", "locate_object"]

Result = TypeVar("Result")

# What `probe_conditional_writes` and probes of other kinds write, so that a garbage collection recognizes them.
PROBE_CONTENTS = (b"", b"first", b"second")

# What is read completely is a small object: the largest real ones, tokenizer.json of large vocabularies, have 35 MB.
LARGEST_SMALL_BYTES = 256 * 2**20

_SINGLE_PUT_BYTES = 32 * 2**20  # larger objects go in several requests: faster, and a failure repeats less


@final
class Store:
    """Objects below `root_uri`.

    Picklable: another process gets the address and the options and opens its own connection. Thread-safe.

    Parameters
    ----------
    root_uri : str
        A directory or a URL: "out/", "file:///data", "s3://bucket/prefix", "memory://x", "gs://...".
    storage_options : mapping, optional
        Options of fsspec: endpoint_url, region, key, secret, profile, ...; flat or one mapping per protocol (see
        `select_options`). No representation, message or traceback shows them.
    conditional_writes : bool
        False if the server ignores If-None-Match (see `probe_conditional_writes`). Then `create` is not exclusive: of
        two simultaneous writers both may succeed, and the last object stays.
    retry : RetryPolicy, optional
    """

    def __init__(
        self,
        root_uri: str,
        storage_options: Mapping[str, object] | None = None,
        *,
        conditional_writes: bool = True,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._uri = absolute_uri(os.fspath(root_uri))
        self._options = select_options(self._uri, storage_options)
        self._secrets = find_secrets(self._options)
        self._conditional_writes = conditional_writes
        self._retry = retry or RetryPolicy()
        self._connection: tuple[int, Backend] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        rebuild = partial(Store, conditional_writes=self._conditional_writes, retry=self._retry)
        return rebuild, (self._uri, self._options)

    def __repr__(self) -> str:
        return f"Store({redact(self._uri, self._secrets)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and (self._uri, self._options) == (other._uri, other._options)

    def __hash__(self) -> int:
        return hash(self._uri)

    @property
    def root_uri(self) -> str:
        """The absolute address of the root, without a trailing slash."""
        return self._uri

    @property
    def is_local(self) -> bool:
        """Whether the store is a directory on this machine."""
        return is_local(self._uri)

    @property
    def backend(self) -> Backend:
        """The operations without retries, for code that copies inside one backend."""
        # A connection does not survive a fork: its event loop runs in a thread that the child process does not have.
        if self._connection is None or self._connection[0] != os.getpid():
            backend = self._run_with_retries(lambda: connect(self._uri, self._options), "opening", "")
            self._connection = (os.getpid(), backend)
        return self._connection[1]

    @property
    def conditional_writes(self) -> bool:
        """Whether `create` relies on the If-None-Match of the server."""
        return self._conditional_writes

    def with_probed_writes(self, prefix: str = PROBES) -> Store:
        """Return this store, with `conditional_writes` off if the server ignores If-None-Match.

        Writes, lists and deletes one small object, because a run needs these permissions only after hours of work.

        Raises
        ------
        StoreError : the store does not allow one of these; the message names it
        """
        if self.probe_conditional_writes(prefix):
            return self
        return Store(self._uri, self._options, conditional_writes=False, retry=self._retry)

    def at(self, uri: str) -> Store:
        """Return the store at another address, opened with the same options."""
        return Store(uri, self._options, conditional_writes=self._conditional_writes, retry=self._retry)

    def shares_access(self, other: Store) -> bool:
        """Return whether both stores use the same protocol and options, so that one can copy from the other."""
        return (protocol_of(self._uri), self._options) == (protocol_of(other._uri), other._options)

    def uri(self, key: str) -> str:
        """Return the absolute address of an object."""
        return join_address(self._uri, check_key(key))

    def display(self, key: str) -> str:
        """Return the address of an object, or of the root for "", without credentials, for messages."""
        return redact(join_address(self._uri, key) if key else self._uri, self._secrets)

    def exists(self, key: str) -> bool:
        """Return whether the store has this object."""
        try:
            self.info(key)
        except ObjectNotFoundError:
            return False
        return True

    def info(self, key: str) -> ObjectInfo:
        """Return size, etag and modification time of an object.

        Raises
        ------
        ObjectNotFoundError : no such object
        """
        check_key(key)
        return self._run_with_retries(lambda: self.backend.info(key), "looking up", key)

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Yield every object in a folder ("" or "parts/"), ordered by key where the backend orders them.

        A folder that does not exist yields nothing. `recursive=False` leaves out subfolders.
        """
        if prefix:
            check_key(prefix.rstrip("/"))
            prefix = prefix.rstrip("/") + "/"
        with self.translate_errors("listing", prefix):
            yield from self.backend.list(prefix, recursive, self.request_runner(prefix))

    def read(self, key: str, limit: int = LARGEST_SMALL_BYTES) -> bytes:
        """Read a complete object, and refuse one that is too large: others may be able to write to the place.

        Parameters
        ----------
        limit : bytes that no object of its kind reaches

        Raises
        ------
        ObjectNotFoundError : no such object
        CorruptObjectError : the object is larger than `limit`; not more than `limit` bytes of it were read
        """
        check_key(key)
        data, size = self._run_with_retries(lambda: self.backend.read(key, limit), "reading", key)
        if size > limit:
            raise CorruptObjectError(f"{self.display(key)}: {size} bytes, expected at most {limit}")
        return data

    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        """Read the first `num_bytes` bytes, or all if the object is shorter, and its size. One request on S3."""
        check_key(key)
        return self._run_with_retries(lambda: self.backend.read_head(key, num_bytes), "reading the beginning of", key)

    def read_range(self, key: str, start: int, stop: int, etag: str = "") -> bytes:
        """Read bytes [start, stop).

        Parameters
        ----------
        etag : of the object that is meant. S3 compares it in the same request. For other storages call
            `check_unchanged` afterwards.

        Raises
        ------
        CorruptObjectError : the object is shorter than `stop`
        ObjectChangedError : the object has another etag
        """
        assert 0 <= start <= stop, (start, stop)
        check_key(key)
        if start == stop:
            return b""
        what = f"reading bytes {start}-{stop} of"
        return self._run_with_retries(lambda: self.backend.read_range(key, start, stop, etag), what, key)

    def check_unchanged(self, key: str, etag: str) -> None:
        """Check that the object still has this etag, after ranges of it were read with that etag.

        Does nothing on S3, where each read was checked, and for an empty etag.

        Raises
        ------
        ObjectChangedError : the object has another etag
        ObjectNotFoundError : no such object
        """
        if etag and not self.backend.checks_etag and self.info(key).etag != etag:
            raise ObjectChangedError(f"{self.display(key)} was replaced by another object")

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write a complete object and replace an existing one."""
        check_key(key)
        content = memoryview(data).cast("B")
        if len(content) > _SINGLE_PUT_BYTES:
            with self.open_write(key) as writer:
                writer.write(content)
            return
        self._run_with_retries(lambda: self.backend.write(key, content), "writing", key)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small object if there is none with this key, and return whether it was written.

        Of several simultaneous writers exactly one gets True, unless `conditional_writes` is False or the store is on
        an fsspec file system that checks first and writes then, such as sftp.
        """
        check_key(key)
        if not self._conditional_writes:
            if self.exists(key):
                return False
            self.write(key, data)
            return True
        attempt, writer_id = 0, uuid.uuid4().hex

        def create_once() -> bool:
            nonlocal attempt
            attempt += 1
            return self.backend.create(key, data, writer_id, attempt == 1)

        return self._run_with_retries(create_once, "creating", key)

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        """Replace a small object if its content is still `expected`, and return whether it was replaced.

        Of several simultaneous writers exactly one gets True, except on a server that ignores If-Match, or an fsspec
        file system that checks first and writes then. A repeated attempt may return False although an attempt before
        succeeded, so a caller that gets False reads the object again.
        """
        check_key(key)
        return self._run_with_retries(lambda: self.backend.replace(key, data, expected), "replacing", key)

    @contextlib.contextmanager
    def open_write(self, key: str) -> Generator[ObjectWriter]:
        """Write an object in chunks. It appears when the block ends; after an exception nothing is left.

        Memory: 64 MiB on S3 and on other remote stores, where larger objects go through a local temporary file; none
        on local disk.
        """
        check_key(key)
        with self.translate_errors("writing", key):
            writer = self.backend.open_write(key, self.request_runner(key))
        try:
            yield ObjectWriter(writer, partial(self.translate_errors, "writing", key))
            with self.translate_errors("writing", key):
                writer.commit()
        except BaseException:
            writer.abort()
            raise

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, in batches where the backend can. Objects that do not exist are ignored."""
        names = [check_key(key) for key in keys]
        with self.translate_errors("deleting from", ""):
            self.backend.delete(names, self.request_runner(""))

    def local_path(self, key: str) -> Path | None:
        """Return the path of the object on this machine, for memory mapping, or None for a remote store."""
        return self.backend.local_path(check_key(key))

    def remove_abandoned(
        self, older_than_seconds: float = 0.0, includes: Callable[[str], bool] | None = None, *, recursive: bool = True
    ) -> int:
        """Remove the temporary files and multipart uploads of writers that died, and return their number.

        On S3 an active upload cannot be told from an abandoned one: pass an age that no upload reaches, such as a day,
        or names that no other process writes.

        Parameters
        ----------
        includes : called with the key of the object that was being written (on a local disk, where that is unknown, of
            the temporary file); False leaves it
        recursive : False leaves out subfolders
        """

        def chosen(key: str) -> bool:
            return (recursive or "/" not in key) and (includes is None or includes(key))

        with self.translate_errors("cleaning", ""):
            return self.backend.remove_abandoned(older_than_seconds, chosen, recursive, self.request_runner(""))

    def probe_conditional_writes(self, prefix: str = PROBES) -> bool:
        """Return whether `create` is exclusive on this server. Also checks that objects can be listed and deleted.

        Three of six S3-compatible servers that were tried ignore If-None-Match and overwrite. Callers warn and continue
        with `Store(..., conditional_writes=False)`, which is safe because keys are hashes of the content.
        """
        key = f"{prefix}{uuid.uuid4().hex}"
        folder = prefix if prefix.endswith("/") else ""
        try:
            exclusive = self._creates_exclusively(key)
            next(iter(self.list(folder, recursive=False)), None)
        except StoreError:
            with contextlib.suppress(StoreError):
                self.delete([key])
            raise
        try:
            self.delete([key])
        except StoreError as error:
            raise StoreError(
                f"{self.display(key)}: the probe was written and cannot be deleted, which a merge has to do ({error})"
            ) from None
        return exclusive

    def _creates_exclusively(self, key: str) -> bool:
        try:
            return self.create(key, b"first") and (self.is_local or not self.create(key, b"second"))
        except StoreError as error:
            if "NotImplemented" not in str(error) and "not implemented" not in str(error).lower():
                raise
            self.write(key, b"first")  # servers that refuse the header instead of ignoring it
            return False

    def request_runner(self, key: str) -> RequestRunner:
        """Return a function that runs single requests with retries, for operations that take several requests."""

        def run_request(action: Callable[[], Result], what: str) -> Result:
            return self._run_with_retries(action, what, key)

        return run_request

    @contextlib.contextmanager
    def translate_errors(self, what: str, key: str) -> Generator[None]:
        """Translate errors raised in the block to StoreError. Does not retry."""
        with translate_errors_to_store_errors(f"{what} {self.display(key)}", self._secrets):
            yield

    def _run_with_retries(self, action: Callable[[], Result], what: str, key: str) -> Result:
        return call_with_retries(action, self._retry, f"{what} {self.display(key)}", self._secrets)


def locate_object(
    uri: str, storage_options: Mapping[str, object] | None = None, *, retry: RetryPolicy | None = None
) -> tuple[Store, str]:
    """Return a store and the key of the object at `uri`: "s3://bucket/a" and "b.json" for "s3://bucket/a/b.json".

    Raises
    ------
    StoreError : the address does not name an object
    """
    parent, name = split_address(absolute_uri(uri))
    if not parent or parent.partition("?")[0].endswith((":/", "://")):
        raise StoreError(f"{redact(uri)!r} is not the address of an object; expected one such as s3://bucket/name")
    return Store(parent, storage_options, retry=retry), check_key(name)


def connect(uri: str, options: Mapping[str, object]) -> Backend:
    """Return the backend for an absolute address."""
    protocol = protocol_of(uri)
    if protocol in {"file", "local"}:
        from .backends.local_backend import LocalBackend

        return LocalBackend(Path(uri))
    if protocol in {"s3", "s3a"}:
        from .backends.s3_backend import S3Backend

        return S3Backend(uri, options)
    if is_web(uri):
        from .backends.http_backend import HttpBackend

        return HttpBackend(uri, options)
    from .backends.fsspec_backend import FsspecBackend

    return FsspecBackend(uri, options)
