"""One object being uploaded to S3: a single put when it is small, a multipart upload when it is not."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from .protocol import RequestRunner
from .s3_upload import Call, MultipartUpload

# 10000 parts of 16 MiB are 156 GiB. All parts but the last have one size: Cloudflare R2 insists.
_PART_BYTES = 16 * 2**20
_PARTS_IN_FLIGHT = 3


class S3Writer:
    """Collects chunks into parts and uploads them in the background; holds at most four parts in memory.

    Nothing is visible before `commit`: S3 shows an object when its upload is completed, and not before.
    """

    def __init__(self, call: Call, key: str, run_request: RequestRunner) -> None:
        self._call = call
        self._key = key
        self._run_request = run_request
        self._buffer = bytearray()
        self._num_bytes = 0
        self._upload: MultipartUpload | None = None
        self._sent: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(_PARTS_IN_FLIGHT, thread_name_prefix="s3-upload")

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        rest = memoryview(chunk).cast("B")
        self._num_bytes += len(rest)
        while rest:
            room = _PART_BYTES - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == _PART_BYTES:
                self._send_part()

    def commit(self) -> None:
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
        self._pool.shutdown(cancel_futures=True)
        self._buffer = bytearray()
        if self._upload is not None:
            self._upload.abort()

    def _send_part(self) -> None:
        if self._upload is None:
            self._upload = MultipartUpload(self._call, self._key, self._run_request)
        if len(self._sent) >= _PARTS_IN_FLIGHT:
            self._sent[-_PARTS_IN_FLIGHT].result()  # bounds the memory, and raises the error of a part early
        body, self._buffer = bytes(self._buffer), bytearray()
        self._sent.append(self._pool.submit(self._upload.send, len(self._sent) + 1, body))
