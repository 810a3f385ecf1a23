"""One file of a checkpoint out of a header and the data of parts, where possible without moving the data.

On one disk the kernel copies (`local_concatenate`), on one S3 server the server does (`s3_concatenate`); only between
two places do the bytes pass through this process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import CorruptObjectError, ObjectNotFoundError, StoreError
from ..backends.local_backend import LocalBackend
from ..backends.s3_backend import S3Backend
from ..read_ahead import read_ahead
from ..store import Store
from .local_concatenate import concatenate_files
from .s3_concatenate import concatenate_objects

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 16 * 2**20
_CHUNKS_AHEAD = 3

Range = tuple[str, int, int]  # key, start, stop


@dataclass(frozen=True, slots=True)
class AssembledFile:
    """What was written.

    sha256 : hexadecimal; None where the data was copied by an S3 server: reading it back would cost what the copy
        saved. The checksums of the parts, which are hashed when they are made, stand for it.
    bytes_transferred : bytes that this process moved itself (locally, reading for the hash is not counted)
    """

    num_bytes: int
    sha256: str | None
    bytes_transferred: int


def assemble_file(
    target: Store, key: str, header: bytes, source: Store, ranges: Sequence[Range], *, sha256: str | None = None
) -> AssembledFile:
    """Write `key` of `target`: the header, then these ranges of objects of `source`, one after the other.

    Cost: locally one copy by the kernel, and beside it in another thread one hash, which takes longer than the copy
    (about 1.5 GB/s); on one S3 server a few requests and up to 5 MiB a file; otherwise one read and one write of
    everything, 64 MiB of memory.

    Parameters
    ----------
    sha256 : of the file, if a `FileHash` has computed it while the parts were being made; saves the local hash

    Raises
    ------
    CorruptObjectError : a part is shorter than its range
    StoreError : reading or writing is refused; nothing half-written is left
    """
    num_bytes = len(header) + sum(stop - start for _, start, stop in ranges)
    written: AssembledFile | None = None
    if isinstance(target.backend, LocalBackend) and isinstance(source.backend, LocalBackend):
        with target.translate_errors("writing", key):
            paths = [(source.backend.path(name), start, stop) for name, start, stop in ranges]
            found, through = concatenate_files(target.backend.path(key), header, paths, hashed=sha256 is None)
        written = AssembledFile(num_bytes, sha256 or found, through)
    elif (
        isinstance(target.backend, S3Backend) and isinstance(source.backend, S3Backend) and target.shares_access(source)
    ):
        try:
            through = concatenate_objects(target, key, header, source, ranges)
            written = AssembledFile(num_bytes, sha256, through)
        except (CorruptObjectError, ObjectNotFoundError):
            raise
        except StoreError as error:
            # Some servers copy no ranges, or want parts of one size. What is wrong with the place itself fails again.
            logger.warning("%s; going on without copying on the server", error)
    if written is None:
        written = _stream(target, key, header, source, ranges)
    size = target.info(key).size
    if size != num_bytes:
        raise CorruptObjectError(f"{target.display(key)} has {size} bytes after writing, expected {num_bytes}")
    return written


def _stream(target: Store, key: str, header: bytes, source: Store, ranges: Sequence[Range]) -> AssembledFile:
    with target.open_write(key) as writer:
        writer.write(header)
        for chunk in read_ahead(lambda chunk: source.read_range(*chunk), _chunks(ranges), _CHUNKS_AHEAD):
            writer.write(chunk)
    return AssembledFile(writer.num_bytes, writer.sha256, writer.num_bytes)


def _chunks(ranges: Sequence[Range]) -> Iterator[Range]:
    for key, start, stop in ranges:
        for position in range(start, stop, _CHUNK_BYTES):
            yield key, position, min(position + _CHUNK_BYTES, stop)
