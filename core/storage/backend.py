"""What a store must do on one kind of place. `Store` adds names, retries and messages; backends only move bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from fsspec.registry import known_implementations

from ..errors import StoreError
from .redaction import redact

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


class Attempt(Protocol):
    """Run one request, again while its failure can pass; `what` says what it is doing: "reading the list"."""

    def __call__(self, action: Callable[[], Result], what: str) -> Result: ...


class Backend(Protocol):
    """Raw operations below one root. Keys are already checked; errors are the backend's own.

    `Store` retries the operations that are a single request. Those that take many get an `attempt` and retry each
    request by itself: at 5% errors, a list of a thousand pages would never come through as a whole.
    """

    def info(self, key: str) -> ObjectInfo: ...
    def list(self, prefix: str, recursive: bool, attempt: Attempt) -> Iterator[ObjectInfo]: ...
    def read(self, key: str) -> bytes: ...
    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]: ...
    def read_range(self, key: str, start: int, stop: int) -> bytes: ...
    def write(self, key: str, data: bytes | memoryview) -> None: ...
    def create(self, key: str, data: bytes, writer: str, first_attempt: bool) -> bool: ...
    def open_write(self, key: str, attempt: Attempt) -> ObjectWriter: ...
    def delete(self, keys: Sequence[str], attempt: Attempt) -> None: ...
    def local_path(self, key: str) -> Path | None: ...
    def remove_abandoned(self, older_than_seconds: float, attempt: Attempt) -> int: ...


def protocol_of(uri: str) -> str:
    """ "s3" of "s3://bucket/x", "file" of a plain path."""
    protocol, separator, _ = uri.partition("://")
    return protocol.lower() if separator else "file"


def is_local(uri: str) -> bool:
    return protocol_of(uri) in {"file", "local"}


def absolute_uri(uri: str) -> str:
    """`uri` in the form that means the same in every process: local places become absolute paths.

    Raises
    ------
    StoreError : an empty address, or one with a control character
    """
    if not uri or any(ord(char) < 32 for char in uri):
        raise StoreError(f"{redact(uri)!r} is not an address; expected a directory or a URL such as s3://bucket/prefix")
    if not is_local(uri):
        return uri.rstrip("/") if not uri.endswith("://") else uri
    # Not unquoted, as fsspec does. Not resolve(): a store behind a symbolic link keeps the name the user gave it.
    return str(Path(uri.partition("://")[2] if "://" in uri else uri).expanduser().absolute())


def options_for(uri: str, storage_options: Mapping[str, object] | None) -> dict[str, object]:
    """The options meant for this place.

    `storage_options` either has one mapping per protocol, {"s3": {...}, "gs": {...}}, or is flat. Flat options are for
    the object stores of a run (S3, GCS, Azure, ...) and are never sent to the Hub or to web servers, which have no
    business with their tokens. Local disk and memory take none.
    """
    protocol = protocol_of(uri)
    options = dict(storage_options or {})
    if protocol in {"file", "local", "memory"}:
        return {}
    if options and all(name in known_implementations and isinstance(value, Mapping) for name, value in options.items()):
        chosen = options.get(protocol, {})
        return dict(chosen) if isinstance(chosen, Mapping) else {}
    return {} if protocol in {"hf", "http", "https"} else options


def connect(uri: str, options: Mapping[str, object]) -> Backend:
    """The backend for an absolute URI."""
    protocol = protocol_of(uri)
    if protocol in {"file", "local"}:
        from .local_backend import LocalBackend

        return LocalBackend(Path(uri))
    if protocol in {"s3", "s3a"}:
        from .s3_backend import S3Backend

        return S3Backend(uri, options)
    from .fsspec_backend import FsspecBackend

    return FsspecBackend(uri, options)
