"""Writer of one S3 object: a single put if it is small, else a multipart upload."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from ...errors import StoreError
from .protocol import RequestRunner
from .s3_upload import MultipartUpload, S3Call

# S3 allows 10000 parts. Cloudflare R2 requires parts of equal size, so they grow late, beyond 23 GiB: to 1/1500 of what
# was sent, which reaches 5 TiB with fewer than 10000 parts.
_PART_BYTES = 16 * 2**20
_EQUAL_PARTS = 1500
LARGEST_OBJECT_BYTES = 5 * 2**40
MOST_PARTS = 10_000


def part_bytes(num_sent: int) -> int:
    """Return the size of the next part of an object of which `num_sent` bytes were sent."""
    return max(_PART_BYTES, num_sent // _EQUAL_PARTS)


_PARTS_IN_FLIGHT = 3


class S3Writer:
    """Collects chunks into parts and uploads the parts in the background.

    Memory: four parts of 16 MiB, more for objects beyond 23 GiB. Nothing is visible before `commit`.
    """

    def __init__(self, call: S3Call, key: str, run_request: RequestRunner) -> None:
        self._call = call
        self._key = key
        self._run_request = run_request
        self._buffer = bytearray()
        self._num_bytes = 0
        self._part_bytes = _PART_BYTES
        self._upload: MultipartUpload | None = None
        self._sent: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(_PARTS_IN_FLIGHT, thread_name_prefix="s3-upload")

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append a chunk; blocks while three parts are being uploaded."""
        rest = memoryview(chunk).cast("B")
        self._num_bytes += len(rest)
        if self._num_bytes > LARGEST_OBJECT_BYTES:
            raise StoreError(
                f"{self._key}: is larger than 5 TiB, the limit of S3; choose smaller files (max_shard_size)"
            )
        while rest:
            room = self._part_bytes - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == self._part_bytes:
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
        self._part_bytes = part_bytes(self._num_bytes)
        self._sent.append(self._pool.submit(self._upload.send, len(self._sent) + 1, body))
