"""What a merge cost, from the records in the store: seconds, bytes, computed or reused. It differs between runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...cache.parts import PART_SUFFIX, RECORD_SUFFIX, read_record
from ...cache.runs import read_run, read_run_objects
from ...errors import StoreError
from ...formats.store_folders import PARTS
from ...storage.store import Store


@dataclass(frozen=True, slots=True)
class TensorCost:
    """One tensor, when its part was made.

    seconds : wall time
    spectrum : "computed", "reused" or "none"
    """

    seconds: float
    spectrum: str


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a run.

    run : counts, seconds and bytes of the last run with this result; empty where it has not finished
    started, finished : as the store recorded them
    seconds, bytes_read : of all parts, when they were made, in this run or an earlier one
    """

    run: Mapping[str, Any]
    started: str | None
    finished: str | None
    seconds: float
    bytes_read: int
    tensors: Mapping[str, TensorCost]


def read_costs(store: Store, run_key: str) -> Costs | None:
    """Return the costs of a run; None where the store has no record of it. Cost: one small read for each part."""
    try:
        facts, keys = read_run(store, run_key), read_run_objects(store, run_key)
    except StoreError:
        return None
    tensors: dict[str, TensorCost] = {}
    seconds, num_bytes = 0.0, 0
    for key in sorted(key for key in keys if key.startswith(PARTS) and key.endswith(RECORD_SUFFIX)):
        try:
            part = read_record(store, key.removesuffix(RECORD_SUFFIX) + PART_SUFFIX)
        except StoreError:  # removed since
            continue
        seconds += part.seconds
        num_bytes += part.bytes_read
        tensors |= {one.name: TensorCost(one.seconds, one.spectrum) for one in part.tensors}
    result = facts.get("result")
    run = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
    return Costs(run, _text(facts.get("started")), _text(facts.get("finished")), seconds, num_bytes, tensors)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
