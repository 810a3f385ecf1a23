"""A multipart upload to S3, with parts sent from here or copied by the server from other objects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..retries import s3_code
from .protocol import RequestRunner

S3Call = Callable[..., dict[str, Any]]

_PART_FIELDS = frozenset(
    {"ETag", "ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256"}
)


class MultipartUpload:
    """One upload. Parts may be sent from several threads; nothing is visible before `complete`.

    Parameters
    ----------
    call : callable
        Sends one request of the S3 API to the bucket: `S3Backend.call`
    key : str
        Key of the object within the bucket
    """

    def __init__(self, call: S3Call, key: str, run_request: RequestRunner) -> None:
        self._call = call
        self._key = key
        self._run_request = run_request
        self._upload_id: str = run_request(
            lambda: call("create_multipart_upload", Key=key)["UploadId"], "starting to write"
        )
        self._parts: dict[int, dict[str, object]] = {}

    def send(self, number: int, body: bytes) -> None:
        """Upload part `number`, counted from 1. All parts except the last must have at least 5 MiB."""
        response = self._run_request(
            lambda: self._call("upload_part", **self._name, PartNumber=number, Body=body), f"writing part {number} of"
        )
        self._parts[number] = _select_part_fields(response)

    def copy(self, number: int, bucket: str, key: str, start: int, stop: int) -> None:
        """Let the server copy bytes [start, stop) of another object as part `number`."""
        # A mapping, not "bucket/key": botocore then quotes characters that HTTP headers cannot contain.
        arguments = {"CopySource": {"Bucket": bucket, "Key": key}, "CopySourceRange": f"bytes={start}-{stop - 1}"}
        response = self._run_request(
            lambda: self._call("upload_part_copy", **self._name, PartNumber=number, **arguments),
            f"copying s3://{bucket}/{key} to",
        )
        self._parts[number] = _select_part_fields(response["CopyPartResult"])

    def complete(self, num_bytes: int) -> None:
        """Complete the upload: the object appears.

        Parameters
        ----------
        num_bytes : int
            Expected size of the object. After a time-out the upload may have been completed: a retry that finds no
            upload succeeds if the object has this size.
        """
        parts = [{"PartNumber": number, **self._parts[number]} for number in sorted(self._parts)]
        attempt = 0

        def complete_once() -> None:
            nonlocal attempt
            attempt += 1
            try:
                self._call("complete_multipart_upload", **self._name, MultipartUpload={"Parts": parts})
            except Exception as error:
                if attempt == 1 or s3_code(error) != "NoSuchUpload":
                    raise
                if self._call("head_object", Key=self._key)["ContentLength"] != num_bytes:
                    raise

        self._run_request(complete_once, "completing")

    def abort(self) -> None:
        """Discard the uploaded parts. Ignores errors: `remove_abandoned` removes what remains."""
        with contextlib.suppress(Exception):
            self._run_request(lambda: self._call("abort_multipart_upload", **self._name), "aborting")

    @property
    def _name(self) -> dict[str, str]:
        return {"Key": self._key, "UploadId": self._upload_id}


def _select_part_fields(response: dict[str, Any]) -> dict[str, object]:
    # Checksums too: if the client sends them by default, some servers refuse to complete an upload without them.
    return {name: value for name, value in response.items() if name in _PART_FIELDS}
