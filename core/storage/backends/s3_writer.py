"""Writer of one S3 object: a single put if it is small, else a multipart upload."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from .protocol import RequestRunner
from .s3_upload import MultipartUpload, S3Call

# 10000 parts, the most that S3 allows, of 16 MiB are 156 GiB. Cloudflare R2 requires parts of equal size.
_PART_BYTES = 16 * 2**20
_PARTS_IN_FLIGHT = 3


class S3Writer:
    """Collects chunks into parts and uploads the parts in the background.

    Memory: four parts of 16 MiB. Nothing is visible before `commit`.
    """

    def __init__(self, call: S3Call, key: str, run_request: RequestRunner) -> None:
        self._call = call
        self._key = key
        self._run_request = run_request
        self._buffer = bytearray()
        self._num_bytes = 0
        self._upload: MultipartUpload | None = None
        self._sent: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(_PARTS_IN_FLIGHT, thread_name_prefix="s3-upload")

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a chunk; blocks while three parts are being uploaded."""
        rest = memoryview(chunk).cast("B")
        self._num_bytes += len(rest)
        while rest:
            room = _PART_BYTES - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == _PART_BYTES:
                self._send_part()

    def commit(self) -> None:
        """Send what remains and make the object visible."""
        if self._upload is None:
            self._run_request(lambda: self._call("put_object", Key=self._key, Body=bytes(self._buffer)), "writing")
        else:
            if self._buffer:
                self._send_part()
            for part in self._sent:
                part.result()
            self._upload.complete(self._num_bytes)
        self._pool.shutdown()

    def abort(self) -> None:
        """Discard everything."""
        self._pool.shutdown(cancel_futures=True)
        self._buffer = bytearray()
        if self._upload is not None:
            self._upload.abort()

    def _send_part(self) -> None:
        if self._upload is None:
            self._upload = MultipartUpload(self._call, self._key, self._run_request)
        if len(self._sent) >= _PARTS_IN_FLIGHT:
            self._sent[-_PARTS_IN_FLIGHT].result()  # limits the memory, and raises the error of a failed part early
        body, self._buffer = bytes(self._buffer), bytearray()
        self._sent.append(self._pool.submit(self._upload.send, len(self._sent) + 1, body))
