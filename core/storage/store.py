"""Objects by name below one root, the same on local disk, S3, memory and every other fsspec file system.

An object is written whole or not at all, read whole or in ranges, and never escapes the root. What can pass is tried
again; what cannot becomes one `StoreError` that names the object.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar, final

from ..errors import ObjectNotFoundError, StoreError
from ..formats.object_names import check_key
from ..formats.redaction import find_secrets, redact
from ..formats.store_folders import PROBES
from .addresses import absolute_uri, is_local, options_for, protocol_of
from .backends.protocol import Backend, ObjectInfo, ObjectWriter, RequestRunner
from .retries import RetryPolicy, call_with_retries
from .retries import translate_errors as _translate_errors

__all__ = ["ObjectInfo", "Store", "WholeObjectWriter", "locate_object"]

Result = TypeVar("Result")

_SINGLE_PUT_BYTES = 32 * 2**20  # beyond it, several requests at a time are faster and a failure repeats less


@final
class Store:
    """Objects below `root_uri`.

    Picklable: another process gets the address and the options and connects by itself. Safe to share between threads.

    Parameters
    ----------
    root_uri : str
        A directory or a URL: "out/", "file:///data", "s3://bucket/prefix", "memory://x", "gs://...".
    storage_options : mapping, optional
        For fsspec: endpoint_url, region, key, secret, profile, ...; flat or one mapping per protocol
        (`options_for`). They never appear in a representation, message or traceback of ours.
    conditional_writes : bool
        False where `probe_conditional_writes` found that the server ignores If-None-Match: `create` then looks first
        and writes afterwards, so two writers at the same moment may both succeed, and the last one stays.
    retry : RetryPolicy
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
        self._options = options_for(self._uri, storage_options)
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
        """The absolute address of the root, without a slash at its end."""
        return self._uri

    @property
    def is_local(self) -> bool:
        return is_local(self._uri)

    @property
    def backend(self) -> Backend:
        """The raw operations, for `assemble`, which copies inside one backend."""
        # A connection does not survive a fork: its event loop runs in a thread that the child does not have.
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = (os.getpid(), self._run(lambda: connect(self._uri, self._options), "opening", ""))
        return self._connection[1]

    @property
    def conditional_writes(self) -> bool:
        """Whether `create` relies on the server's If-None-Match."""
        return self._conditional_writes

    def with_probed_writes(self, prefix: str = PROBES) -> Store:
        """Return this store, with `conditional_writes` off where the server ignores If-None-Match.

        A local disk creates files exclusively and needs no probe.

        Raises
        ------
        StoreError : the store cannot be written
        """
        if self.is_local or self.probe_conditional_writes(prefix):
            return self
        return Store(self._uri, self._options, conditional_writes=False, retry=self._retry)

    def shares_access(self, other: Store) -> bool:
        """Whether both are reached by the same protocol with the same options, so that one can copy to the other."""
        return (protocol_of(self._uri), self._options) == (protocol_of(other._uri), other._options)

    def uri(self, key: str) -> str:
        """The absolute address of one object."""
        return f"{self._uri.rstrip('/')}/{check_key(key)}"

    def display(self, key: str) -> str:
        """The address for messages: without credentials."""
        return redact(f"{self._uri.rstrip('/')}/{key}" if key else self._uri, self._secrets)

    def exists(self, key: str) -> bool:
        try:
            self.info(key)
        except ObjectNotFoundError:
            return False
        return True

    def info(self, key: str) -> ObjectInfo:
        """Size, etag and time of one object; `ObjectNotFoundError` when there is none."""
        check_key(key)
        return self._run(lambda: self.backend.info(key), "looking up", key)

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Every object below a folder ("" or "parts/"), in the order of keys where the backend has one.

        Nothing there is not an error. `recursive=False` leaves out what lies in folders further down.
        """
        if prefix:
            check_key(prefix.rstrip("/"))
            prefix = prefix.rstrip("/") + "/"
        with self.translate_errors("listing", prefix):
            yield from self.backend.list(prefix, recursive, self.request_runner(prefix))

    def read(self, key: str) -> bytes:
        """The whole object."""
        check_key(key)
        return self._run(lambda: self.backend.read(key), "reading", key)

    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        """The first bytes, as many as there are up to `num_bytes`, and the size of the object; one request on S3."""
        check_key(key)
        return self._run(lambda: self.backend.read_head(key, num_bytes), "reading the beginning of", key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop). `CorruptObjectError` when the object is shorter than `stop`."""
        assert 0 <= start <= stop, (start, stop)
        check_key(key)
        if start == stop:
            return b""
        what = f"reading bytes {start}-{stop} of"
        return self._run(lambda: self.backend.read_range(key, start, stop), what, key)

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write one whole object; an older one of that name is replaced. Needs the whole content in memory."""
        check_key(key)
        content = memoryview(data).cast("B")
        if len(content) > _SINGLE_PUT_BYTES:
            with self.open_write(key) as writer:
                writer.write(content)
            return
        self._run(lambda: self.backend.write(key, content), "writing", key)

    def create(self, key: str, data: bytes) -> bool:
        """Write one small object unless that name is taken; whether it was free.

        Of several writers at once exactly one gets True (see `conditional_writes`).
        """
        check_key(key)
        if not self._conditional_writes:
            if self.exists(key):
                return False
            self.write(key, data)
            return True
        tries, writer = 0, uuid.uuid4().hex

        def once() -> bool:
            nonlocal tries
            tries += 1
            return self.backend.create(key, data, writer, tries == 1)

        return self._run(once, "creating", key)

    @contextlib.contextmanager
    def open_write(self, key: str) -> Iterator[WholeObjectWriter]:
        """Write an object in chunks. It appears when the block ends; after an exception nothing is left.

        Memory: up to 64 MiB on S3, up to 64 MiB on other remote stores (then a local file), nothing locally.
        """
        check_key(key)
        with self.translate_errors("writing", key):
            raw = self.backend.open_write(key, self.request_runner(key))
        try:
            yield WholeObjectWriter(raw, partial(self.translate_errors, "writing", key))
            with self.translate_errors("writing", key):
                raw.commit()
        except BaseException:
            raw.abort()
            raise

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these objects, in batches where the store has them; objects that are not there are no error."""
        names = [check_key(key) for key in keys]
        with self.translate_errors("deleting from", ""):
            self.backend.delete(names, self.request_runner(""))

    def local_path(self, key: str) -> Path | None:
        """Where the object lies on this machine, for memory mapping; None when it does not."""
        return self.backend.local_path(check_key(key))

    def remove_abandoned(self, older_than_seconds: float = 0.0) -> int:
        """Remove what killed writers left: locked-by-nobody temporary files, unfinished multipart uploads.

        On S3 a living upload looks like a dead one: give an age there that no upload reaches, such as a day.
        """
        with self.translate_errors("cleaning", ""):
            return self.backend.remove_abandoned(older_than_seconds, self.request_runner(""))

    def probe_conditional_writes(self, prefix: str = PROBES) -> bool:
        """Whether `create` is exclusive here. Also proves that the store can be written to.

        Three of six S3-compatible servers that were tried ignore If-None-Match and overwrite. Callers say so and go on
        with `Store(..., conditional_writes=False)`: results are addressed by content, so the last write is as good as
        the first.
        """
        key = f"{prefix}{uuid.uuid4().hex}"
        try:
            return self.create(key, b"first") and not self.create(key, b"second")
        except StoreError as error:
            if "NotImplemented" in str(error) or "not implemented" in str(error).lower():
                return False  # servers that refuse the header instead of ignoring it
            raise
        finally:
            with contextlib.suppress(StoreError):
                self.delete([key])

    def _run(self, action: Callable[[], Result], what: str, key: str) -> Result:
        return call_with_retries(action, self._retry, f"{what} {self.display(key)}", self._secrets)

    def request_runner(self, key: str) -> RequestRunner:
        def run_request(action: Callable[[], Result], what: str) -> Result:
            return self._run(action, what, key)

        return run_request

    @contextlib.contextmanager
    def translate_errors(self, what: str, key: str) -> Iterator[None]:
        """Errors of the block as `StoreError`; nothing is tried again."""
        with _translate_errors(f"{what} {self.display(key)}", self._secrets):
            yield


@final
class WholeObjectWriter:
    """What `Store.open_write` gives: counts and hashes what passes."""

    def __init__(
        self, raw: ObjectWriter, translate_errors: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._raw = raw
        self._translate_errors = translate_errors
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        view = memoryview(chunk).cast("B")
        with self._translate_errors():
            self._raw.write(view)
        self._hash.update(view)
        self.num_bytes += len(view)

    @property
    def sha256(self) -> str:
        """Of everything written so far, hexadecimal."""
        return self._hash.hexdigest()


def locate_object(
    uri: str, storage_options: Mapping[str, object] | None = None, *, retry: RetryPolicy | None = None
) -> tuple[Store, str]:
    """The store and the key of one object anywhere: ("s3://bucket/a", "b.safetensors") of "s3://bucket/a/b.safetensors"."""
    parent, _, name = absolute_uri(uri).rpartition("/")
    if not parent or parent.endswith(":/") or parent.endswith("://"):
        raise StoreError(f"{redact(uri)!r} does not name an object; expected something like s3://bucket/name")
    return Store(parent, storage_options, retry=retry), check_key(name)


def connect(uri: str, options: Mapping[str, object]) -> Backend:
    """The backend for an absolute URI."""
    protocol = protocol_of(uri)
    if protocol in {"file", "local"}:
        from .backends.local_backend import LocalBackend

        return LocalBackend(Path(uri))
    if protocol in {"s3", "s3a"}:
        from .backends.s3_backend import S3Backend

        return S3Backend(uri, options)
    from .backends.fsspec_backend import FsspecBackend

    return FsspecBackend(uri, options)
