"""Backend for S3 and compatible servers, through s3fs and its botocore client.

The caches of s3fs for listings, info and read-ahead are off, because other processes write to the same store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from ...errors import CorruptObjectError, ObjectChangedError
from ..fsspec_calls import open_s3_file_system, run_coroutine
from ..retries import ShortReadError, http_status, s3_code
from .protocol import ObjectInfo, RequestRunner
from .s3_writer import S3Writer

_DELETE_BATCH = 1000  # limit of the API
_CONNECTIONS = 32
_CONNECT_SECONDS = 5  # botocore waits a minute; a lost connection is retried by `retries.py`
_WRITER_ID = "eigenmerge-writer"  # metadata of objects that `create` writes


class S3Backend:
    """Objects below s3://bucket/prefix."""

    checks_etag = True

    def __init__(self, uri: str, options: Mapping[str, object]) -> None:
        self.fs = open_s3_file_system(_s3fs_options(options))
        self.fs.retries = 1  # retries are made in `retries.py` only
        self.bucket, prefix, _ = cast("tuple[str, str, object]", self.fs.split_path(uri.rstrip("/")))
        self._sends_if_match = True
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""

    def object_key(self, key: str) -> str:
        """Return the key of an object within the bucket."""
        return self._prefix + key

    def call(self, method: str, **arguments: object) -> dict[str, Any]:
        """Send one request of the S3 API to this bucket and return the response."""
        return self.fs.call_s3(method, Bucket=self.bucket, **arguments)

    def info(self, key: str) -> ObjectInfo:
        head = self.call("head_object", Key=self.object_key(key))
        return ObjectInfo(key, head["ContentLength"], _etag(head), _timestamp(head.get("LastModified")))

    def list(self, prefix: str, recursive: bool, run_request: RequestRunner) -> Iterator[ObjectInfo]:
        arguments: dict[str, object] = {"Prefix": self._prefix + prefix}
        if not recursive:
            arguments["Delimiter"] = "/"
        while True:
            page = run_request(lambda: self.call("list_objects_v2", **arguments), "listing")
            for entry in page.get("Contents", []):
                key = entry["Key"].removeprefix(self._prefix)
                if key and not key.endswith("/"):  # some tools create objects that stand for directories
                    yield ObjectInfo(key, entry["Size"], _etag(entry), _timestamp(entry.get("LastModified")))
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, key: str, limit: int) -> tuple[bytes, int]:
        # As a range, because only then the response contains the size of the object. A proxy that truncates the body
        # and announces the shorter length would otherwise go unnoticed.
        try:
            data, size = self._get_range(key, "bytes=0-", limit=limit)
        except Exception as error:
            if _is_beyond_end(error):
                return b"", 0
            raise
        if size <= limit and len(data) != size:
            raise ShortReadError(f"the object has {size} bytes, got {len(data)}")
        return data, size

    def read_head(self, key: str, num_bytes: int) -> tuple[bytes, int]:
        try:
            data, size = self._get_range(key, f"bytes=0-{num_bytes - 1}")
        except Exception as error:
            if _is_beyond_end(error):  # S3 has no range of an empty object
                return b"", 0
            raise
        if len(data) != min(num_bytes, size):
            raise ShortReadError(f"asked for {min(num_bytes, size)} bytes, got {len(data)}")
        return data, size

    def read_range(self, key: str, start: int, stop: int, etag: str = "") -> bytes:
        try:
            data, size = self._get_range(key, f"bytes={start}-{stop - 1}", etag)
        except Exception as error:
            if _is_beyond_end(error):
                raise self._too_short(key, stop, self.info(key).size) from None
            if not etag or not _is_precondition(error):
                raise
            if self.info(key).etag != etag:
                raise self._changed(key) from None
            self._sends_if_match = False  # the server compares the header wrongly
            return self.read_range(key, start, stop, etag)
        if len(data) != stop - start:
            if size < stop:
                raise self._too_short(key, stop, size)
            raise ShortReadError(f"asked for {stop - start} bytes, got {len(data)}")
        return data

    def write(self, key: str, data: bytes | memoryview) -> None:
        self.call("put_object", Key=self.object_key(key), Body=bytes(data))

    def create(self, key: str, data: bytes, writer_id: str, first_attempt: bool) -> bool:
        # An attempt whose response was lost may have succeeded, and aiohttp silently repeats a PUT on a connection
        # that the server closed. The metadata tells whether the existing object is from this call.
        name, metadata = self.object_key(key), {_WRITER_ID: writer_id}
        try:
            self.call("put_object", Key=name, Body=data, IfNoneMatch="*", Metadata=metadata)
        except Exception as error:
            if not _is_precondition(error):
                raise
            try:
                return self.call("head_object", Key=name).get("Metadata", {}).get(_WRITER_ID) == writer_id
            except Exception as head_error:
                if http_status(head_error) != 404 and not isinstance(head_error, FileNotFoundError):
                    raise
                return False  # another process created it and has deleted it since, as with claims
        return True

    def replace(self, key: str, data: bytes, expected: bytes) -> bool:
        # The ETag is taken before the content: a change in between makes the condition fail.
        etag = self.info(key).etag
        if self.read(key, len(expected)) != (expected, len(expected)):
            return False
        try:
            self.call("put_object", Key=self.object_key(key), Body=data, IfMatch=f'"{etag}"')
        except Exception as error:
            if http_status(error) in {404, 412} or s3_code(error) in {"PreconditionFailed", "NoSuchKey"}:
                return False
            raise
        return True

    def open_write(self, key: str, run_request: RequestRunner) -> S3Writer:
        return S3Writer(self.call, self.object_key(key), run_request)

    def delete(self, keys: Sequence[str], run_request: RequestRunner) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": self.object_key(key)} for key in keys[start : start + _DELETE_BATCH]]
            run_request(lambda batch=batch: self._delete_batch(batch), f"deleting {len(batch)} objects")

    def _delete_batch(self, batch: Sequence[Mapping[str, str]]) -> None:
        from botocore.exceptions import ClientError  # pyright: ignore[reportMissingTypeStubs]

        response = self.call("delete_objects", Delete={"Objects": batch, "Quiet": True})
        for failure in response.get("Errors", []):
            if failure.get("Code") != "NoSuchKey":
                raise ClientError({"Error": failure}, "DeleteObjects")

    def local_path(self, key: str) -> Path | None:
        return None

    def remove_abandoned(
        self, older_than_seconds: float, includes: Callable[[str], bool], recursive: bool, run_request: RequestRunner
    ) -> int:
        """Abort multipart uploads that were started long ago: they are not listed as objects, but are charged for."""
        removed = 0
        arguments: dict[str, object] = {"Prefix": self._prefix}
        while True:
            page = run_request(lambda: self.call("list_multipart_uploads", **arguments), "listing unfinished uploads")
            for upload in page.get("Uploads", []):
                age = time.time() - _timestamp(upload.get("Initiated"))
                if older_than_seconds > 0 and age < older_than_seconds:  # 0: any, also where the clocks differ
                    continue
                if not includes(upload["Key"].removeprefix(self._prefix)):
                    continue
                name = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                run_request(
                    lambda name=name: self.call("abort_multipart_upload", **name), "aborting an unfinished upload"
                )
                removed += 1
            if not page.get("IsTruncated"):
                return removed
            arguments["KeyMarker"] = page["NextKeyMarker"]
            arguments["UploadIdMarker"] = page["NextUploadIdMarker"]

    def _get_range(self, key: str, byte_range: str, etag: str = "", limit: int | None = None) -> tuple[bytes, int]:
        """Return the bytes of an HTTP range, and the size of the whole object, which must have the etag if it is given.

        The etag of the response is compared too, because some servers ignore If-Match. Nothing is read of an object
        with more than `limit` bytes.
        """
        arguments = {"Bucket": self.bucket, "Key": self.object_key(key), "Range": byte_range}
        if etag and self._sends_if_match and not etag.startswith("W/"):  # If-Match never matches a weak etag
            arguments["IfMatch"] = f'"{etag}"'

        async def fetch() -> tuple[bytes, int]:
            response = await self.fs._call_s3("get_object", **arguments)
            try:
                if etag and _etag(response) not in ("", etag):
                    raise self._changed(key)
                size = response.get("ContentRange", "").rpartition("/")[2]
                size = int(size) if size.isdecimal() else response["ContentLength"]
                if limit is not None and size > limit:
                    return b"", size
                data = await response["Body"].read()
            finally:
                response["Body"].close()
            if len(data) != response["ContentLength"]:
                raise ShortReadError(f"the server announced {response['ContentLength']} bytes and sent {len(data)}")
            return data, size

        return run_coroutine(self.fs, fetch)

    def _changed(self, key: str) -> ObjectChangedError:
        return ObjectChangedError(f"s3://{self.bucket}/{self.object_key(key)} was replaced by another object")

    def _too_short(self, key: str, stop: int, size: int) -> CorruptObjectError:
        return CorruptObjectError(
            f"s3://{self.bucket}/{self.object_key(key)} is too short: {size} bytes, expected at least {stop}"
        )


def _is_beyond_end(error: Exception) -> bool:
    return http_status(error) == 416 or s3_code(error) == "InvalidRange"


def _is_precondition(error: Exception) -> bool:
    return http_status(error) == 412 or s3_code(error) == "PreconditionFailed"


def _s3fs_options(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options of the user with caches and retries off, and with `region` where botocore expects it."""
    chosen: dict[str, Any] = dict(options)
    client: dict[str, Any] = dict(chosen.pop("client_kwargs", None) or {})
    for name in ("region", "region_name"):
        if name in chosen:
            client.setdefault("region_name", chosen.pop(name))
    config: dict[str, Any] = dict(chosen.pop("config_kwargs", None) or {})
    config["retries"] = {"total_max_attempts": 1, "mode": "standard"}
    config.setdefault("max_pool_connections", _CONNECTIONS)
    config.setdefault("connect_timeout", _CONNECT_SECONDS)
    return {**chosen, "client_kwargs": client, "config_kwargs": config, "use_listings_cache": False}


def _etag(entry: Mapping[str, Any]) -> str:
    return entry.get("ETag", "").strip('"')


def _timestamp(moment: datetime | None) -> float:
    return moment.timestamp() if moment is not None else 0.0
