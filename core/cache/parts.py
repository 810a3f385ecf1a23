"""Parts: the merged tensors of one shard as an object in the store, with a record that says it is whole.

A part is a safetensors file whose data section goes into the output file as it is. The record (`.json` beside it) is
written after it: its presence is the commit. The record carries size, etag and sha256 of the part, and a checksum of
itself, so that a part that was truncated, changed or replaced is noticed and made again.
"""

from __future__ import annotations

import json
from dataclasses import replace

from ..errors import CorruptObjectError, ObjectNotFoundError
from ..formats.digest import hash_text
from ..planning.plan import LayerShard
from ..storage.object_hash import hash_object
from ..storage.store import Store
from .reports import ShardReport


def record_key(part_key: str) -> str:
    return part_key.removesuffix(".safetensors") + ".json"


def shard_table_key(part_key: str) -> str:
    """Where values and statistics of a shard's matrices are (`spectra_table`)."""
    return part_key.removesuffix(".safetensors") + ".arrow"


def write_record(store: Store, report: ShardReport) -> None:
    """Commit a part that is already in the store."""
    body = json.dumps(report.to_dict(), sort_keys=True)
    store.write(record_key(report.part_key), json.dumps({"sha256": hash_text(body), "report": body}).encode())


def read_record(store: Store, part_key: str) -> ShardReport:
    """The record of a part.

    Raises
    ------
    ObjectNotFoundError : the part is not committed
    CorruptObjectError : truncated, changed, or another part's
    """
    try:
        envelope = json.loads(store.read(record_key(part_key)))
        if hash_text(envelope["report"]) != envelope["sha256"]:
            raise ValueError("checksum does not fit")
        report = ShardReport.from_dict(json.loads(envelope["report"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptObjectError(f"the record of part {part_key} is damaged ({error})") from None
    if report.part_key != part_key:
        raise CorruptObjectError(f"the record of part {part_key} is damaged (it is another part's record)")
    return report


def find_part(store: Store, shard: LayerShard) -> tuple[ShardReport | None, str | None]:
    """The report of a whole, committed part of this shard, or None with the reason if something unfit lies there.

    An unchanged etag (on a disk: modification time) says that nobody wrote there since. Where it differs, as in a store
    that was copied to another place, the bytes are hashed.
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
        info = store.info(shard.part_key)
    except ObjectNotFoundError:
        return None, f"part {shard.part_key} is gone; made again"
    if info.size != report.num_bytes:
        return None, f"part {shard.part_key} has {info.size} bytes, expected {report.num_bytes}; made again"
    unchanged = bool(info.etag) and info.etag == report.etag
    if not unchanged and hash_object(store, shard.part_key, info.size) != report.sha256:
        return None, f"part {shard.part_key} fails its checksum; made again"
    return replace(report, index=shard.index, reused=True), None
