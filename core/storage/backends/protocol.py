"""Interface of a storage backend. `Store` adds key checks, retries and messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Facts about one object.

    key : relative to the root of the store
    size : bytes
    etag : changes with the content: ETag (S3, GCS), content hash (Hub), modification time in nanoseconds (local);
        "" if the backend has none
    modified : seconds since 1970, or 0.0 if the backend does not report it
    sha256 : of the content, where the storage states it (large files on the Hub); "" elsewhere
    """

    key: str
    size: int
    etag: str
    modified: float
    sha256: str = ""


class BackendWriter(Protocol):
    """Writes one object: nothing is visible before `commit`, nothing is left after `abort`."""

    def write(self, chunk: bytes | bytearray | memoryview) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class RequestRunner(Protocol):
    """Runs one request with retries; `what` says what the request does, for messages: "listing"."""

    def __call__(self, action: Callable[[], Result], what: str) -> Result: ...


class Backend(Protocol):
    """Operations below one root. Keys are already checked; errors are those of the underlying library.

    `Store` retries operations that are a single request. Operations of several requests get `run_request` and retry
    each request: at an error rate of 5%, a listing of a thousand pages would never succeed as a whole.

    `create` writes an object if there is none with its key and returns whether it did. `writer_id` is unique to the
    call, and `first_attempt` is False in a retry: the attempt before may have succeeded although its response was lost.

    `read` returns a complete object and its size; of one with more than `limit` bytes, any number of its first bytes.
    `read_range` with an etag raises ObjectChangedError if the object has another one, where `checks_etag` is set: the
    server compares it in the same request. The other backends ignore it.
    `remove_abandoned` asks `includes` for each unfinished file or upload; `recursive` says whether subfolders have any.
    """

    checks_etag: bool

    def info(self, key: str) -> ObjectInfo: ...
    def list(self, prefix: str, recursive: bool, run_request: RequestRunner) -> Iterator[ObjectInfo]: ...
    def read(self, key: str, limit: int) -> tuple[bytes, int]: ...
    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]: ...
    def read_range(self, key: str, start: int, stop: int, etag: str = "") -> bytes: ...
    def write(self, key: str, data: bytes | memoryview) -> None: ...
    def create(self, key: str, data: bytes, writer_id: str, first_attempt: bool) -> bool: ...
    def replace(self, key: str, data: bytes, expected: bytes) -> bool: ...
    def open_write(self, key: str, run_request: RequestRunner) -> BackendWriter: ...
    def delete(self, keys: Sequence[str], run_request: RequestRunner) -> None: ...
    def local_path(self, key: str) -> Path | None: ...
    def remove_abandoned(
        self, older_than_seconds: float, includes: Callable[[str], bool], recursive: bool, run_request: RequestRunner
    ) -> int: ...
