"""Backend for every other fsspec file system: memory://, gs://, az://, hf://, sftp://, ..."""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

from ...errors import CorruptObjectError, StoreError
from ..addresses import protocol_of
from ..fsspec_calls import open_file_system, put_in_memory
from ..retries import ShortReadError
from .protocol import ObjectInfo, RequestRunner

# A put on these creates the object in one step. On all others a partly written file is visible under its name.
_ATOMIC_PUT_PROTOCOLS = frozenset({"memory", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "hf", "r2"})
_PARTIAL_NAME = re.compile(r"(?P<key>.+)\.partial-[0-9a-f]{16}")
_ABANDONED_AFTER_SECONDS = 86400.0
_SPOOL_BYTES = 64 * 2**20
_VERSION_FIELDS = (
    "ETag", "etag", "md5Hash", "content_md5", "blob_id", "mtime", "LastModified", "updated", "created",
)  # fmt: skip
_TIME_FIELDS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class FsspecBackend:
    """Objects below one fsspec URL."""

    checks_etag = False

    def __init__(self, uri: str, options: Mapping[str, object]) -> None:
        self._protocol = protocol_of(uri)
        try:
            self._fs, root = open_file_system(uri, {"use_listings_cache": False, **options})
        except ImportError as error:
            raise StoreError(
                f"{self._protocol}:// needs a package that is not installed; install it ({error})"
            ) from None
        except ValueError as error:
            raise StoreError(
                f"{self._protocol}:// is not a protocol of fsspec; correct the address ({error})"
            ) from None
        self._root = root.rstrip("/")
        # The file system of the Hub reads megabytes beyond the requested range in advance.
        self._no_read_ahead = {"cache_type": "none"} if self._protocol == "hf" else {}

    def info(self, key: str) -> ObjectInfo:
        found = self._fs.info(self._path(key))
        if found.get("type") == "directory":
            raise FileNotFoundError(key)
        return self._object_info(found)

    def list(self, prefix: str, recursive: bool, run_request: RequestRunner) -> Iterator[ObjectInfo]:
        folder = self._path(prefix.rstrip("/")) if prefix else self._root
        depth = None if recursive else 1

        def find() -> dict[str, dict[str, Any]]:
            self._fs.invalidate_cache()
            try:
                return self._fs.find(folder, maxdepth=depth, detail=True)
            except FileNotFoundError:
                return {}

        for name, found in sorted(run_request(find, "listing").items()):
            if name.rstrip("/") != folder.rstrip("/") and _PARTIAL_NAME.fullmatch(name) is None:
                yield self._object_info(found)

    def read(self, key: str, limit: int) -> tuple[bytes, int]:
        # The size comes from another request: one read up to it could cut an object that was replaced in between.
        size = self.info(key).size
        data: bytes = self._fs.cat_file(self._path(key)) if size <= limit else b""
        return data, len(data) if size <= limit else size

    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        size = self.info(key).size
        return self.read_range(key, 0, min(num_bytes, size)) if size else b"", size

    def read_range(self, key: str, start: int, stop: int, etag: str = "") -> bytes:
        data = self._fs.cat_file(self._path(key), start=start, end=stop, **self._no_read_ahead)
        if len(data) != stop - start:
            size = self.info(key).size
            if size < stop:
                raise CorruptObjectError(f"{key} is too short: {size} bytes, expected at least {stop}")
            raise ShortReadError(f"asked for {stop - start} bytes, got {len(data)}")
        return data

    def write(self, key: str, data: bytes | memoryview) -> None:
        with self._write_path(key) as path:
            self._fs.pipe_file(path, bytes(data))

    def create(self, key: str, data: bytes, writer_id: str, first_attempt: bool) -> bool:
        path = self._path(key)
        self._make_parent(path)
        if self._protocol == "memory":
            return put_in_memory(self._fs, path, data)
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # another process created it and has deleted it since
                return not first_attempt and self.read(key, len(data)) == (data, len(data))
            return False
        except (NotImplementedError, TypeError):  # no exclusive creation on this file system
            if self._fs.exists(path):
                return False
            self.write(key, data)
        return True

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        if self.read(key, len(expected)) != (expected, len(expected)):
            return False
        self.write(key, data)
        return True

    def open_write(self, key: str, run_request: RequestRunner) -> SpooledWriter:
        return SpooledWriter(self, key, run_request)

    def put(self, key: str, local_name: str) -> None:
        """Write the content of a local file as an object."""
        with self._write_path(key) as path:
            self._fs.put_file(local_name, path)

    def delete(self, keys: Sequence[str], run_request: RequestRunner) -> None:
        for key in keys:
            run_request(lambda key=key: self._delete(key), "deleting")

    def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def local_path(self, key: str) -> Path | None:
        return None

    def remove_abandoned(
        self, older_than_seconds: float, includes: Callable[[str], bool], recursive: bool, run_request: RequestRunner
    ) -> int:
        """Remove partly written files that are old enough: their writers cannot be asked whether they live."""
        if self._protocol in _ATOMIC_PUT_PROTOCOLS:
            return 0
        oldest = time.time() - max(older_than_seconds, _ABANDONED_AFTER_SECONDS)
        depth = None if recursive else 1
        try:
            found = run_request(lambda: self._fs.find(self._root, maxdepth=depth, detail=True), "listing")
        except FileNotFoundError:
            return 0
        removed = 0
        for facts in found.values():
            info = self._object_info(facts)
            match = _PARTIAL_NAME.fullmatch(info.key)
            if match is not None and includes(match["key"]) and 0 < info.modified < oldest:
                run_request(lambda key=info.key: self._delete(key), "deleting")
                removed += 1
        return removed

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _make_parent(self, path: str) -> None:
        if self._protocol not in _ATOMIC_PUT_PROTOCOLS or self._protocol == "memory":
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _write_path(self, key: str) -> Generator[str]:
        """Yield a path to write to; its content becomes the object when the block ends."""
        path = self._path(key)
        self._make_parent(path)
        if self._protocol in _ATOMIC_PUT_PROTOCOLS:
            yield path
            return
        temporary = f"{path}.partial-{secrets.token_hex(8)}"
        try:
            yield temporary
            self._fs.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(temporary)
            raise

    def _object_info(self, found: Mapping[str, Any]) -> ObjectInfo:
        key = found["name"].removeprefix(self._root).lstrip("/")
        return ObjectInfo(key, found["size"] or 0, _version(found), _modified(found), _content_hash(found))


class SpooledWriter:
    """Collects chunks in memory, or in a local temporary file beyond 64 MiB, and sends everything at the commit."""

    def __init__(self, backend: FsspecBackend, key: str, run_request: RequestRunner) -> None:
        self._backend = backend
        self._key = key
        self._run_request = run_request
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a chunk."""
        if self._file is not None:
            self._file.write(chunk)
            return
        self._buffer += memoryview(chunk).cast("B")
        if len(self._buffer) > _SPOOL_BYTES:
            self._file = tempfile.NamedTemporaryFile(prefix="eigenmerge-")  # noqa: SIM115 (closed by commit or abort)
            self._file.write(self._buffer)
            self._buffer = bytearray()

    def commit(self) -> None:
        """Send the object."""
        if self._file is None:
            self._run_request(lambda: self._backend.write(self._key, bytes(self._buffer)), "writing")
            return
        with self._file as file:
            file.flush()
            self._run_request(lambda: self._backend.put(self._key, file.name), "writing")

    def abort(self) -> None:
        """Discard everything."""
        self._buffer = bytearray()
        if self._file is not None:
            self._file.close()


def _version(found: Mapping[str, Any]) -> str:
    """Return a value that changes with the content: a hash where the file system has one, else a time."""
    content_hash = _content_hash(found)
    if content_hash:
        return content_hash
    for name in _VERSION_FIELDS:
        value = found.get(name)
        if value:
            return str(value.timestamp() if isinstance(value, datetime) else value).strip('"')
    return ""


def _content_hash(found: Mapping[str, Any]) -> str:
    """Return the sha256 of a large file on the Hub, which is its address there; "" for other files."""
    lfs = found.get("lfs")
    if not lfs:
        return ""
    return str(cast("Mapping[str, object]", lfs)["sha256"] if isinstance(lfs, Mapping) else lfs.sha256)


def _modified(found: Mapping[str, Any]) -> float:
    for name in _TIME_FIELDS:
        moment = found.get(name)
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return 0.0
