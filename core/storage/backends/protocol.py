"""What a store must do on one kind of place. `Store` adds names, retries and messages; backends only move bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: key relative to the store's root, size, and what changes when its content does.

    etag : ETag (S3, GCS), content hash (Hub), or modification time in nanoseconds (local); "" where a store has none
    modified : seconds since 1970, or 0.0 where a store does not say
    """

    key: str
    size: int
    etag: str
    modified: float


class ObjectWriter(Protocol):
    """An object being written: nothing is visible before `commit`, nothing is left after `abort`."""

    def write(self, chunk: bytes | bytearray | memoryview) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class RequestRunner(Protocol):
    """Run one request, again while its failure can pass; `what` says what it is doing: "reading the list"."""

    def __call__(self, action: Callable[[], Result], what: str) -> Result: ...


class Backend(Protocol):
    """Raw operations below one root. Keys are already checked; errors are the backend's own.

    `Store` retries the operations that are a single request. Those that take many get an `attempt` and retry each
    request by itself: at 5% errors, a list of a thousand pages would never come through as a whole.
    """

    def info(self, key: str) -> ObjectInfo: ...
    def list(self, prefix: str, recursive: bool, run_request: RequestRunner) -> Iterator[ObjectInfo]: ...
    def read(self, key: str) -> bytes: ...
    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]: ...
    def read_range(self, key: str, start: int, stop: int) -> bytes: ...
    def write(self, key: str, data: bytes | memoryview) -> None: ...
    def create(self, key: str, data: bytes, writer: str, first_attempt: bool) -> bool: ...
    def open_write(self, key: str, run_request: RequestRunner) -> ObjectWriter: ...
    def delete(self, keys: Sequence[str], run_request: RequestRunner) -> None: ...
    def local_path(self, key: str) -> Path | None: ...
    def remove_abandoned(self, older_than_seconds: float, run_request: RequestRunner) -> int: ...
