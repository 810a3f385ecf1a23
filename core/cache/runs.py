"""What a store knows of a run: which recipe, when, and which of its objects the run uses.

    runs/<run key>/objects.json   the keys of everything that this run reads or leaves in the store
    runs/<run key>/run.json       method, models, recipe, times, and the result once there is one; written second

A run with the same key, which is the same merge, writes the same names again. Only here are there times: the manifest
of a checkpoint has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..coordination.claims import hold_run
from ..errors import CorruptObjectError
from ..formats.redaction import redact
from ..planning.plan import Plan, TensorPlan, spectrum_keys
from ..run import Run
from ..storage.store import Store
from .layout import run_object_key
from .parts import record_key, shard_table_key
from .sealed_json import read_sealed_json, write_sealed_json

if TYPE_CHECKING:  # it imports torch, and `eigenmerge cache ls` should answer at once
    from .result import MergeResult

RUN_NAME = "run.json"
OBJECTS_NAME = "objects.json"
FORMAT_VERSION = 1


@dataclass(slots=True)
class RunRecord:
    """The record of the run at hand."""

    store: Store
    key: str
    facts: dict[str, Any]

    def finish(self, result: MergeResult) -> None:
        """Add what came of it."""
        hidden = ("destination", "run_key", "files", "warnings")
        outcome = {name: value for name, value in result.to_dict().items() if name not in hidden}
        self.facts |= {"finished": _now(), "result": outcome}
        write_sealed_json(self.store, self.key, self.facts)


@contextlib.contextmanager
def recorded_run(run: Run, destination: str) -> Iterator[RunRecord]:
    """Write the record, and hold the run's claim for the block: nothing that a living run uses is collected."""
    plan, store = run.plan, run.store
    with hold_run(store, plan.run_key):
        objects = {"format": FORMAT_VERSION, "run_key": plan.run_key, "objects": run_objects(plan)}
        write_sealed_json(store, run_object_key(plan.run_key, OBJECTS_NAME), objects)
        record = RunRecord(store, run_object_key(plan.run_key, RUN_NAME), _facts(plan, destination))
        write_sealed_json(store, record.key, record.facts)
        yield record


def run_objects(plan: Plan) -> list[str]:
    """Every key outside of runs/ that a run of this plan may read or write."""
    found: set[str] = set()
    for shard in plan.shards:
        found |= {shard.part_key, record_key(shard.part_key), shard_table_key(shard.part_key)}
        for tensor in shard.tensors:
            found.update(_tensor_objects(tensor))
    return sorted(found)


def read_run(store: Store, run_key: str) -> dict[str, Any]:
    """What `run.json` says.

    Raises
    ------
    ObjectNotFoundError : no such run
    CorruptObjectError : damaged, or another run's
    """
    return _checked(store, run_key, RUN_NAME)


def read_run_objects(store: Store, run_key: str) -> frozenset[str]:
    """The keys that a run uses; errors as `read_run`."""
    content = _checked(store, run_key, OBJECTS_NAME)
    objects = content.get("objects")
    if not isinstance(objects, list) or not all(isinstance(key, str) for key in objects):
        raise CorruptObjectError(f"{store.display(run_object_key(run_key, OBJECTS_NAME))}: lists no objects")
    return frozenset(objects)


def _checked(store: Store, run_key: str, name: str) -> dict[str, Any]:
    key = run_object_key(run_key, name)
    content = read_sealed_json(store, key)
    if content.get("run_key") != run_key or content.get("format") != FORMAT_VERSION:
        raise CorruptObjectError(f"{store.display(key)}: is not the record of this run in format {FORMAT_VERSION}")
    return content


def _tensor_objects(tensor: TensorPlan) -> Iterator[str]:
    yield from spectrum_keys(tensor)
    matrices = (tensor, *tensor.views)
    keys = [tensor.alignment_key, *(one.calibration_key for one in matrices), *(one.sums_key for one in matrices)]
    yield from (key for key in keys if key is not None)


def _facts(plan: Plan, destination: str) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "run_key": plan.run_key,
        "eigenmerge": version("eigenmerge"),
        "method": plan.recipe.get("merge_method"),
        "base": plan.base.name if plan.base is not None else None,
        "experts": [model.name for model in plan.experts],
        "num_tensors": plan.num_tensors,
        "destination": redact(destination),
        "recipe": _redacted(dict(plan.recipe)),
        "started": _now(),
        "finished": None,
        "result": None,
    }


def _redacted(value: Any) -> Any:
    """Addresses in a recipe may hold credentials."""
    if isinstance(value, Mapping):
        return {name: _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
