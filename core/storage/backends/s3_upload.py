"""A multipart upload to S3: begun, filled part by part from bytes or from other objects, completed or aborted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..retries import s3_code
from .protocol import RequestRunner

Call = Callable[..., dict[str, Any]]


class MultipartUpload:
    """One upload. Parts may be sent from several threads; nothing is visible before `complete`."""

    def __init__(self, call: Call, key: str, run_request: RequestRunner) -> None:
        self._call = call
        self._key = key
        self._run_request = run_request
        self._upload_id: str = run_request(
            lambda: call("create_multipart_upload", Key=key)["UploadId"], "beginning to write"
        )
        self._parts: dict[int, dict[str, object]] = {}

    def send(self, number: int, body: bytes) -> None:
        """Upload part `number` (from 1). All but the last must have at least 5 MiB."""
        answer = self._run_request(
            lambda: self._call("upload_part", **self._name, PartNumber=number, Body=body), f"writing part {number} of"
        )
        # Where the client sends checksums by default, some servers refuse to complete without them.
        self._parts[number] = {name: value for name, value in answer.items() if name in _PART_FIELDS}

    def copy(self, number: int, bucket: str, key: str, start: int, stop: int) -> None:
        """Make part `number` of bytes [start, stop) of another object; no byte passes through here."""
        # A mapping, not "bucket/key": botocore then quotes names that HTTP headers could not carry.
        arguments = {"CopySource": {"Bucket": bucket, "Key": key}, "CopySourceRange": f"bytes={start}-{stop - 1}"}
        answer = self._run_request(
            lambda: self._call("upload_part_copy", **self._name, PartNumber=number, **arguments),
            f"copying s3://{bucket}/{key} into",
        )
        result = answer["CopyPartResult"]
        self._parts[number] = {name: value for name, value in result.items() if name in _PART_FIELDS}

    def complete(self, num_bytes: int) -> None:
        """The commit. A time-out may hide a success: the second try then finds no upload, and the whole object."""
        parts = [{"PartNumber": number, **self._parts[number]} for number in sorted(self._parts)]
        tries = 0

        def complete() -> None:
            nonlocal tries
            tries += 1
            try:
                self._call("complete_multipart_upload", **self._name, MultipartUpload={"Parts": parts})
            except Exception as error:
                if tries == 1 or s3_code(error) != "NoSuchUpload":
                    raise
                if self._call("head_object", Key=self._key)["ContentLength"] != num_bytes:
                    raise

        self._run_request(complete, "completing")

    def abort(self) -> None:
        """Drop what was uploaded. A failure here is not worth another error: `remove_abandoned` finds the rest."""
        with contextlib.suppress(Exception):
            self._run_request(lambda: self._call("abort_multipart_upload", **self._name), "aborting")

    @property
    def _name(self) -> dict[str, str]:
        return {"Key": self._key, "UploadId": self._upload_id}


_PART_FIELDS = frozenset(
    {"ETag", "ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256"}
)
