"""Write one file of a checkpoint from a header and ranges of stored objects, without moving the data if possible.

On one disk the kernel copies (`local_concatenate`), on one S3 server the server copies (`s3_concatenate`). Between two
different stores the data passes through this process.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import CorruptObjectError, ObjectNotFoundError, StoreError, one_line
from ..backends.local_backend import LocalBackend
from ..backends.s3_backend import S3Backend
from ..backends.s3_writer import LARGEST_OBJECT_BYTES
from ..object_ranges import ObjectRange, split_ranges
from ..read_ahead import read_ahead
from ..store import Store
from .local_concatenate import concatenate_files
from .part_check import PartCheck, TensorBytes
from .s3_concatenate import concatenate_objects

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 16 * 2**20
_CHUNKS_AHEAD = 3


@dataclass(frozen=True, slots=True)
class AssembledFile:
    """The result of `assemble_file`.

    sha256 : hexadecimal; None where an S3 server copied the data, because hashing would mean to download it. The
        checksums of the parts, computed when they were written, protect the data instead.
    bytes_transferred : bytes that passed through this process; local reads for the hash are not counted
    """

    num_bytes: int
    sha256: str | None
    bytes_transferred: int


def assemble_file(
    target: Store,
    key: str,
    header: bytes,
    source: Store,
    ranges: Sequence[ObjectRange],
    *,
    sha256: str | None = None,
    tensors: Sequence[Sequence[TensorBytes]] = (),
) -> AssembledFile:
    """Write `key` in `target`: the header, then ranges of objects in `source`, one after the other.

    Cost: on one disk a copy by the kernel and, in parallel, a hash, which takes longer (about 1.5 GB/s). On one S3
    server a few requests and up to 5 MiB per file. Otherwise one read and one write of everything and 64 MiB of memory.

    Parameters
    ----------
    sha256 : str, optional
        Hash of the file, if `FileHash` has computed it while the parts were written; saves the local hash. `FileHash`
        has compared the tensors then.
    tensors : for each range, the tensors whose bytes it must have; they are compared while the file is written, and
        where an S3 server copies, afterwards, which reads the file once. Empty: they are not compared.

    Raises
    ------
    DamagedPartError : the bytes of a tensor are not those that were computed
    CorruptObjectError : an object is shorter than its range
    StoreError : reading or writing failed; no partial file is left
    """
    num_bytes = len(header) + sum(stop - start for _, start, stop in ranges)
    if isinstance(target.backend, S3Backend) and num_bytes > LARGEST_OBJECT_BYTES:
        raise StoreError(
            f"{target.display(key)}: {num_bytes} bytes, S3 stores at most 5 TiB in one object; set a smaller"
            " max_shard_size"
        )
    written: AssembledFile | None = None
    if isinstance(target.backend, LocalBackend) and isinstance(source.backend, LocalBackend):
        with target.translate_errors("writing", key):
            paths = [(source.backend.path(name), start, stop) for name, start, stop in ranges]
            found, transferred = concatenate_files(
                target.backend.path(key), header, paths, hashed=sha256 is None, tensors=tensors
            )
        written = AssembledFile(num_bytes, sha256 or found, transferred)
    elif (
        isinstance(target.backend, S3Backend) and isinstance(source.backend, S3Backend) and target.shares_access(source)
    ):
        try:
            transferred = concatenate_objects(target, key, header, source, ranges)
            written = AssembledFile(num_bytes, sha256, transferred)
            _compare_copy(target, key, len(header), ranges, tensors)
        except (CorruptObjectError, ObjectNotFoundError):
            raise
        except StoreError as error:
            # Some servers cannot copy ranges, or require parts of equal size. Any other problem occurs again below.
            logger.warning("%s; sending the data from here instead of copying on the server", one_line(error))
    if written is None:
        written = _transfer(target, key, header, source, ranges, tensors)
    size = target.info(key).size
    if size != num_bytes:
        raise CorruptObjectError(
            f"{target.display(key)} has {size} bytes after writing, expected {num_bytes};"
            " check that no other process writes it, then resume"
        )
    return written


def _compare_copy(
    target: Store, key: str, start: int, ranges: Sequence[ObjectRange], tensors: Sequence[Sequence[TensorBytes]]
) -> None:
    """Read a file that the server has copied, and compare its tensors.

    Parameters
    ----------
    start : offset of the first range in the file
    """
    for (name, begin, stop), expected in zip(ranges, tensors, strict=False):
        check = PartCheck(f"{target.display(key)}, copied from {name}", expected)
        chunks = split_ranges([(key, start, start + stop - begin)], _CHUNK_BYTES)
        for data in read_ahead(lambda chunk: target.read_range(*chunk), chunks, _CHUNKS_AHEAD):
            check.update(data)
        check.finish()
        start += stop - begin


def _transfer(
    target: Store,
    key: str,
    header: bytes,
    source: Store,
    ranges: Sequence[ObjectRange],
    tensors: Sequence[Sequence[TensorBytes]],
) -> AssembledFile:
    checks = [PartCheck(source.display(piece[0]), part) for piece, part in zip(ranges, tensors, strict=False)]
    with target.open_write(key) as writer:
        writer.write(header)
        for number, piece in enumerate(ranges):
            chunks = split_ranges([piece], _CHUNK_BYTES)
            for data in read_ahead(lambda chunk: source.read_range(*chunk), chunks, _CHUNKS_AHEAD):
                writer.write(data)
                if checks:
                    checks[number].update(data)
            if checks:
                checks[number].finish()
    return AssembledFile(writer.num_bytes, writer.sha256, writer.num_bytes)
