"""Join objects on one S3 server: a multipart upload whose parts are ranges of other objects, copied by the server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from ...errors import StoreError
from ..backends.s3_backend import S3Backend
from ..backends.s3_upload import MultipartUpload
from ..backends.s3_writer import MOST_PARTS
from ..object_ranges import ObjectRange
from ..store import Store

SMALLEST_PART_BYTES = 5 * 2**20  # limit of S3 for every part but the last, and for the source of a copy
_LARGEST_COPY_BYTES = 256 * 2**20  # the limit is 5 GiB; smaller parts are copied in parallel
_PARALLEL_COPIES = 8


@dataclass(frozen=True, slots=True)
class CopiedPart:
    """A part that the server copies: bytes [start, stop) of an object."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that this process sends: `head`, then ranges of objects."""

    head: bytes
    ranges: tuple[ObjectRange, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.head) + sum(stop - start for _, start, stop in self.ranges)


def plan_parts(header: bytes, ranges: Sequence[ObjectRange]) -> list[CopiedPart | SentPart]:
    """Divide a file into parts that the server copies and parts that must be sent.

    S3 requires 5 MiB for every part but the last. So the header is extended with the first bytes of the first range,
    and consecutive ranges below 5 MiB are sent together.
    """
    parts: list[CopiedPart | SentPart] = []
    total = len(header) + sum(stop - start for _, start, stop in ranges)
    largest = max(_LARGEST_COPY_BYTES, total // (MOST_PARTS // 2))  # 1 GiB for 5 TiB; ranges of their own add parts
    head, gathered, size = header, list[ObjectRange](), len(header)
    for key, begin, stop in ranges:
        start = begin
        if size:
            missing = max(0, SMALLEST_PART_BYTES - size)
            # The whole range if what remains of it would be too small to be copied.
            taken = missing if stop - start - missing >= SMALLEST_PART_BYTES else stop - start
            if taken:
                gathered.append((key, start, start + taken))
                size += taken
                start += taken
            if size >= SMALLEST_PART_BYTES:
                parts.append(SentPart(head, tuple(gathered)))
                head, gathered, size = b"", [], 0
        if stop - start >= SMALLEST_PART_BYTES:
            count = -(-(stop - start) // largest)
            edges = [start + (stop - start) * number // count for number in range(count + 1)]
            parts.extend(CopiedPart(key, *edges[number : number + 2]) for number in range(count))
        elif stop > start:
            gathered.append((key, start, stop))
            size = stop - start
    if size or not parts:
        parts.append(SentPart(head, tuple(gathered)))
    return parts


def concatenate_objects(target: Store, key: str, header: bytes, source: Store, ranges: Sequence[ObjectRange]) -> int:
    """Write an object from a header and ranges of objects of the same server.

    Returns
    -------
    int
        Bytes that passed through this process

    Raises
    ------
    CorruptObjectError : an object is shorter than its range
    StoreError : the server refuses, or does not respond; nothing is left
    """
    parts = plan_parts(header, ranges)
    if len(parts) > MOST_PARTS:
        raise StoreError(f"{target.display(key)}: {len(parts)} parts, S3 allows {MOST_PARTS}")
    transferred = sum(part.num_bytes for part in parts if isinstance(part, SentPart))

    def read_content(part: SentPart) -> bytes:
        return part.head + b"".join(source.read_range(*piece) for piece in part.ranges)

    if len(parts) == 1 and isinstance(parts[0], SentPart):
        target.write(key, read_content(parts[0]))
        return transferred
    target_backend, source_backend = cast(S3Backend, target.backend), cast(S3Backend, source.backend)
    upload = MultipartUpload(target_backend.call, target_backend.object_key(key), target.request_runner(key))

    def upload_part(number: int) -> None:
        part = parts[number - 1]
        if isinstance(part, SentPart):
            upload.send(number, read_content(part))
        else:
            upload.copy(number, source_backend.bucket, source_backend.object_key(part.key), part.start, part.stop)

    try:
        with ThreadPoolExecutor(_PARALLEL_COPIES, thread_name_prefix="s3-copy") as pool:
            list(pool.map(upload_part, range(1, len(parts) + 1)))
        upload.complete(len(header) + sum(stop - start for _, start, stop in ranges))
    except BaseException:
        upload.abort()
        raise
    return transferred
