"""Records of runs: the recipe and the times of each run of a store, and which objects it uses.

    runs/<run key>/objects.json   the keys of all objects that the run reads or writes
    runs/<run key>/run.json       method, models, recipe, times and, once it has finished, the result; written second

A run with the same key computes the same merge and replaces these objects. Times are recorded only here: the manifest
of a checkpoint has none, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from ..coordination.claims import hold_run
from ..errors import CorruptObjectError
from ..formats.redaction import redact, redact_strings
from ..planning.keys import probes_keys, top_values_key
from ..planning.plan import Plan, TensorPlan, spectrum_keys, top_keys
from ..run import Run
from ..storage.store import Store
from .parts import record_key, shard_table_key
from .run_folder import OBJECTS_NAME, RUN_NAME, run_object_key
from .sealed_json import read_sealed_json, write_sealed_json

if TYPE_CHECKING:
    from .result import MergeResult

FORMAT_VERSION = 1

# Fields of the result that run.json has elsewhere, or that the checkpoint lists.
_NOT_RECORDED = ("destination", "run_key", "files", "warnings", "already_complete")


@dataclass(slots=True)
class RunRecord:
    """run.json of the active run.

    facts : its content
    """

    store: Store
    key: str
    facts: dict[str, Any]

    def finish(self, result: MergeResult) -> None:
        """Write the time of the end and the result."""
        recorded = {name: value for name, value in result.to_dict().items() if name not in _NOT_RECORDED}
        self.facts |= {"finished": _now(), "result": recorded}
        write_sealed_json(self.store, self.key, self.facts)


@contextlib.contextmanager
def recorded_run(run: Run, destination: str) -> Generator[RunRecord, None, None]:
    """Write the record and hold the run's claim while the block runs, so that no object of the run is collected."""
    plan, store = run.plan, run.store
    with hold_run(store, plan.run_key):
        objects = {"format": FORMAT_VERSION, "run_key": plan.run_key, "objects": run_objects(plan)}
        write_sealed_json(store, run_object_key(plan.run_key, OBJECTS_NAME), objects)
        record = RunRecord(store, run_object_key(plan.run_key, RUN_NAME), _facts(plan, destination))
        write_sealed_json(store, record.key, record.facts)
        yield record


def run_objects(plan: Plan) -> list[str]:
    """Return every key outside of runs/ that a run of this plan may read or write, sorted."""
    keys: set[str] = set()
    for shard in plan.shards:
        keys |= {shard.part_key, record_key(shard.part_key), shard_table_key(shard.part_key)}
        for tensor in shard.tensors:
            keys.update(_tensor_objects(tensor))
    return sorted(keys)


def read_run(store: Store, run_key: str) -> dict[str, Any]:
    """Return the content of run.json.

    Raises
    ------
    ObjectNotFoundError : the run is not recorded
    CorruptObjectError : damaged, or the record of another run
    """
    return _read_checked(store, run_key, RUN_NAME)


def read_run_objects(store: Store, run_key: str) -> frozenset[str]:
    """Return the keys that a run uses outside of its folder; raises as `read_run`."""
    objects = _read_checked(store, run_key, OBJECTS_NAME).get("objects")
    if not isinstance(objects, list) or not all(isinstance(key, str) for key in cast("list[object]", objects)):
        raise CorruptObjectError(f"{store.display(run_object_key(run_key, OBJECTS_NAME))}: has no list of objects")
    return frozenset(cast("list[str]", objects))


def _read_checked(store: Store, run_key: str, name: str) -> dict[str, Any]:
    key = run_object_key(run_key, name)
    content = read_sealed_json(store, key)
    if content.get("run_key") != run_key or content.get("format") != FORMAT_VERSION:
        raise CorruptObjectError(f"{store.display(key)}: is not the record of this run in format {FORMAT_VERSION}")
    return content


def _tensor_objects(tensor: TensorPlan) -> Iterator[str]:
    yield from spectrum_keys(tensor)
    matrices = (tensor, *tensor.views)
    keys = (
        tensor.alignment_key,
        tensor.outputs_alignment_key,
        *(one.calibration_key for one in matrices),
        *(one.sums_key for one in matrices),
        *(one.outputs.sums_key for one in matrices if one.outputs is not None),
        *(top_values_key(key) for key in top_keys(tensor)),
        *probes_keys(tensor),
    )
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
        "recipe": redact_strings(dict(plan.recipe)),
        "started": _now(),
        "finished": None,
        "result": None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
