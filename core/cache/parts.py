"""Parts: the merged tensors of one shard as one object, and its record, which commits it.

A part is a safetensors file whose data section is copied into the output file unchanged. The record, a JSON object
beside it, is written after it and holds size, etag and sha256 of the part and a checksum of itself. So a part that was
truncated, changed or replaced is detected and made again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..errors import CorruptObjectError, ObjectNotFoundError
from ..formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from ..formats.digest import hash_text
from ..formats.store_folders import PARTS
from ..planning.plan import LayerShard
from ..storage.object_hash import hash_object
from ..storage.store import Store
from .reports import ShardReport

PART_SUFFIX = ".safetensors"
RECORD_SUFFIX = ".json"
TABLE_SUFFIX = ".arrow"


def is_part(key: str) -> bool:
    """Return whether a key of the store is that of a part."""
    return key.startswith(PARTS) and key.endswith(PART_SUFFIX)


def record_key(part_key: str) -> str:
    """Return the key of the part's record."""
    return part_key.removesuffix(PART_SUFFIX) + RECORD_SUFFIX


def shard_table_key(part_key: str) -> str:
    """Return the key of the table of values and statistics of the shard's matrices."""
    return part_key.removesuffix(PART_SUFFIX) + TABLE_SUFFIX


def write_record(store: Store, report: ShardReport) -> None:
    """Commit a part that is already in the store."""
    body = json.dumps(report.to_dict(), sort_keys=True)
    store.write(record_key(report.part_key), json.dumps({"sha256": hash_text(body), "report": body}).encode())


def read_record(store: Store, part_key: str) -> ShardReport:
    """Read and check the record of a part.

    Raises
    ------
    ObjectNotFoundError : the part is not committed
    CorruptObjectError : truncated, changed, or the record of another part
    """
    try:
        content = store.read(record_key(part_key), LONGEST_INDEX_BYTES)
        envelope: dict[str, Any] = parse_json_object(content, "the envelope", LONGEST_INDEX_BYTES)
        if hash_text(envelope["report"]) != envelope["sha256"]:
            raise ValueError("its checksum differs")
        body = envelope["report"].encode()
        report = ShardReport.from_dict(parse_json_object(body, "the report", LONGEST_INDEX_BYTES, finite=False))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CorruptObjectError(f"the record of part {part_key} is damaged ({error})") from None
    if report.part_key != part_key:
        raise CorruptObjectError(f"the record of part {part_key} is damaged (it belongs to another part)")
    return report


def find_part(store: Store, shard: LayerShard) -> tuple[ShardReport | None, str | None]:
    """Return the report of the shard's committed part, or None and why a part that exists cannot be used.

    An unchanged etag (on a local disk made of size and time) proves that the part was not written since its record.
    Where the etag differs, as in a copy of the store, the content is hashed.
    """
    try:
        report = read_record(store, shard.part_key)
    except ObjectNotFoundError:
        return None, None
    except CorruptObjectError as error:
        return None, f"{error}; made again"
    if [tensor.name for tensor in report.tensors] != [tensor.name for tensor in shard.tensors]:
        return None, f"the record of part {shard.part_key} is damaged (it lists other tensors); made again"
    try:
        _check_content(store, report)
    except ObjectNotFoundError:
        return None, f"part {shard.part_key} is missing; made again"
    except CorruptObjectError as error:
        return None, f"{error}; made again"
    return replace(report, index=shard.index, reused=True), None


def verify_part(store: Store, part_key: str) -> None:
    """Hash a part and compare it with its record; does nothing where the record itself is damaged.

    Raises
    ------
    ObjectNotFoundError : the part or its record is missing
    CorruptObjectError : size or checksum differ from the record
    """
    try:
        report = read_record(store, part_key)
    except CorruptObjectError:
        return  # `verify_record` reports it
    _check_content(store, replace(report, etag=""))


def verify_record(store: Store, key: str) -> None:
    """Check the record of that key, and that its part exists.

    Raises
    ------
    ObjectNotFoundError, CorruptObjectError : as `read_record`; the part is missing
    """
    part_key = key.removesuffix(RECORD_SUFFIX) + PART_SUFFIX
    read_record(store, part_key)
    if not store.exists(part_key):
        raise CorruptObjectError(f"{store.display(key)}: its part is missing")


def _check_content(store: Store, report: ShardReport) -> None:
    """Compare a part with its record: the size, then the etag, and the hash where the etag differs or is unknown."""
    info = store.info(report.part_key)
    if info.size != report.num_bytes:
        raise CorruptObjectError(f"part {report.part_key} has {info.size} bytes, expected {report.num_bytes}")
    unchanged = bool(info.etag) and info.etag == report.etag
    if not unchanged and hash_object(store, report.part_key, info.size) != report.sha256:
        raise CorruptObjectError(f"part {report.part_key} fails its checksum")
