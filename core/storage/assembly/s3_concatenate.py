"""Objects joined on one S3 server: a multipart upload whose parts are ranges of other objects."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from ..backends.s3_backend import S3Backend
from ..backends.s3_upload import MultipartUpload
from ..store import Store

SMALLEST_PART_BYTES = 5 * 2**20  # S3's limit, for every part but the last, and for a source of a copy
_LARGEST_COPY_BYTES = 256 * 2**20  # far below the limit of 5 GiB, so that the server copies several at a time
_PARALLEL_COPIES = 8

Range = tuple[str, int, int]  # key, start, stop


@dataclass(frozen=True, slots=True)
class CopiedPart:
    """A part that the server copies."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that is put together here: bytes, then ranges of objects."""

    head: bytes
    ranges: tuple[Range, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.head) + sum(stop - start for _, start, stop in self.ranges)


def plan_parts(header: bytes, ranges: Sequence[Range]) -> list[CopiedPart | SentPart]:
    """Which parts are copied and which must pass through here, because S3 takes no part below 5 MiB but the last.

    The header is filled up with the first bytes of the first range; ranges below 5 MiB are gathered.
    """
    parts: list[CopiedPart | SentPart] = []
    head, gathered, size = header, list[Range](), len(header)
    for key, begin, stop in ranges:
        start = begin
        if size:
            missing = max(0, SMALLEST_PART_BYTES - size)
            # All of it where the rest would be too small to be copied.
            taken = missing if stop - start - missing >= SMALLEST_PART_BYTES else stop - start
            if taken:
                gathered.append((key, start, start + taken))
                size += taken
                start += taken
            if size >= SMALLEST_PART_BYTES:
                parts.append(SentPart(head, tuple(gathered)))
                head, gathered, size = b"", [], 0
        if stop - start >= SMALLEST_PART_BYTES:
            count = -(-(stop - start) // _LARGEST_COPY_BYTES)
            edges = [start + (stop - start) * number // count for number in range(count + 1)]
            parts.extend(CopiedPart(key, *edges[number : number + 2]) for number in range(count))
        elif stop > start:
            gathered.append((key, start, stop))
            size = stop - start
    if size or not parts:
        parts.append(SentPart(head, tuple(gathered)))
    return parts


def concatenate_objects(target: Store, key: str, header: bytes, source: Store, ranges: Sequence[Range]) -> int:
    """Write an object from a header and ranges of objects of the same server; the bytes that passed through here."""
    parts = plan_parts(header, ranges)
    through = sum(part.num_bytes for part in parts if isinstance(part, SentPart))

    def content(part: SentPart) -> bytes:
        return part.head + b"".join(source.read_range(*piece) for piece in part.ranges)

    if len(parts) == 1 and isinstance(parts[0], SentPart):
        target.write(key, content(parts[0]))
        return through
    to, origin = cast(S3Backend, target.backend), cast(S3Backend, source.backend)
    upload = MultipartUpload(to.call, to.object_key(key), target.request_runner(key))

    def transfer(number: int) -> None:
        part = parts[number - 1]
        if isinstance(part, SentPart):
            upload.send(number, content(part))
        else:
            upload.copy(number, origin.bucket, origin.object_key(part.key), part.start, part.stop)

    try:
        with ThreadPoolExecutor(_PARALLEL_COPIES, thread_name_prefix="s3-copy") as pool:
            list(pool.map(transfer, range(1, len(parts) + 1)))
        upload.complete(len(header) + sum(stop - start for _, start, stop in ranges))
    except BaseException:
        upload.abort()
        raise
    return through
