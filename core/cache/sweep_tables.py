"""The table of a sweep: one row per candidate with its parameters and scores, as an Arrow file.

    sweeps/<sweep key>/table.arrow   every candidate that was scored for this recipe and these evaluators
    sweeps/<sweep key>/best.yml      the recipe of the best one

A later sweep of the same recipe with another grid adds rows to the same table, and scores no candidate twice.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pyarrow as pa

from ..errors import CorruptObjectError
from ..formats.digest import hash_json, hash_text
from ..formats.store_folders import SWEEPS
from ..recipe.settings import Scalar
from ..storage.store import Store

TABLE_NAME = "table.arrow"
BEST_NAME = "best.yml"
BEST_MARK = "# eigenmerge sweep "

Status = Literal["scored", "failed", "pruned"]

#: Columns that every table has; no parameter or metric can have such a name.
RESERVED_COLUMNS = ("candidate", "status", "seconds", "steps", "error")

_FORMAT = b"eigenmerge sweep table 1"
_STEPS = pa.list_(pa.struct([pa.field("step", pa.int64()), pa.field("value", pa.float64())]))
# What Arrow and JSON raise for a damaged table.
_UNREADABLE = (pa.ArrowException, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One candidate.

    candidate : run key of its merge
    metrics : by name; None where a score is not defined
    seconds : of the evaluation, wall time
    steps : (step, value) pairs that the evaluator reported while it was running
    error : of a failed candidate, one line
    """

    candidate: str
    settings: Mapping[str, Scalar]
    metrics: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    status: Status = "scored"
    seconds: float = 0.0
    steps: tuple[tuple[int, float], ...] = ()
    error: str | None = None


def sweep_object_key(sweep_key: str, name: str) -> str:
    """Return the key of an object of a sweep."""
    return f"{SWEEPS}{sweep_key}/{name}"


def to_table(rows: Sequence[SweepRow]) -> pa.Table:
    """Return the rows as an Arrow table: candidate, one column for each parameter and metric, status, seconds, ..."""
    parameters = list(dict.fromkeys(name for row in rows for name in row.settings))
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {"candidate": (pa.string(), [row.candidate for row in rows])}
    for name in parameters:
        columns[name] = _parameter_column([row.settings.get(name) for row in rows])
    for name in metrics:
        columns[name] = (pa.float64(), [row.metrics.get(name) for row in rows])
    columns["status"] = (pa.string(), [row.status for row in rows])
    columns["seconds"] = (pa.float64(), [row.seconds for row in rows])
    columns["steps"] = (_STEPS, [[{"step": step, "value": value} for step, value in row.steps] for row in rows])
    columns["error"] = (pa.string(), [row.error for row in rows])
    facts = json.dumps({"parameters": parameters, "metrics": metrics})
    schema = pa.schema([pa.field(name, kind) for name, (kind, _) in columns.items()])
    arrays = [pa.array(values, type=kind) for kind, values in columns.values()]
    return pa.Table.from_arrays(
        arrays, schema=schema.with_metadata({b"eigenmerge": _FORMAT, b"columns": facts.encode()})
    )


def write_sweep_table(store: Store, sweep_key: str, rows: Sequence[SweepRow]) -> None:
    """Write all rows as one object."""
    table = to_table(rows)
    metadata = {**(table.schema.metadata or {}), b"sweep": sweep_key.encode(), b"sha256": _checksum(table).encode()}
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as file:
        for batch in table.to_batches():
            file.write_batch(batch)
    store.write(sweep_object_key(sweep_key, TABLE_NAME), sink.getvalue())


def read_sweep_table(store: Store, sweep_key: str) -> list[SweepRow]:
    """Return the rows of a sweep, in the order in which they were scored.

    Raises
    ------
    ObjectNotFoundError : nothing was scored yet
    CorruptObjectError : truncated, changed, or the table of another sweep
    """
    key = sweep_object_key(sweep_key, TABLE_NAME)
    name, data = store.display(key), store.read(key)
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
        metadata = table.schema.metadata or {}
        if metadata.get(b"eigenmerge") != _FORMAT or metadata.get(b"sweep") != sweep_key.encode():
            raise CorruptObjectError(f"{name} is not the table of this sweep")
        if metadata.get(b"sha256") != _checksum(table).encode():
            raise CorruptObjectError(f"{name} fails its checksum")
        columns = cast("dict[str, list[str]]", json.loads(metadata[b"columns"]))
        return [_to_row(values, columns["parameters"], columns["metrics"]) for values in table.to_pylist()]
    except CorruptObjectError:
        raise
    except _UNREADABLE as error:
        raise CorruptObjectError(f"{name} is damaged ({str(error)[:100]})") from None


def write_best_recipe(store: Store, sweep_key: str, text: str) -> str:
    """Write the recipe of the best candidate beside the table, and return its key."""
    key = sweep_object_key(sweep_key, BEST_NAME)
    body = text if text.endswith("\n") else text + "\n"
    store.write(key, f"{BEST_MARK}{sweep_key} sha256 {hash_text(body)}\n{body}".encode())
    return key


def check_best_recipe(store: Store, key: str) -> None:
    """Check that an object is a recipe that `write_best_recipe` wrote.

    Raises
    ------
    ObjectNotFoundError : no such object
    CorruptObjectError : truncated or changed
    """
    first, _, body = store.read(key).decode(errors="replace").partition("\n")
    if not first.startswith(BEST_MARK) or not first.endswith(f" sha256 {hash_text(body)}"):
        raise CorruptObjectError(f"{store.display(key)}: is not the recipe that a sweep wrote, or was changed")


def _parameter_column(values: Iterable[Scalar]) -> tuple[pa.DataType, list[Any]]:
    found = list(values)
    kinds = {type(value) for value in found if value is not None}
    if kinds <= {bool}:
        return pa.bool_(), found
    if kinds <= {int}:
        return pa.int64(), found
    if kinds <= {int, float}:
        return pa.float64(), found
    return pa.string(), [None if value is None else str(value) for value in found]


def _to_row(values: Mapping[str, Any], parameters: Sequence[str], metrics: Sequence[str]) -> SweepRow:
    return SweepRow(
        candidate=str(values["candidate"]),
        settings={name: values[name] for name in parameters},
        metrics={name: values[name] for name in metrics if values[name] is not None or values["status"] == "scored"},
        status=values["status"],
        seconds=float(values["seconds"]),
        steps=tuple((int(step["step"]), float(step["value"])) for step in values["steps"] or ()),
        error=values["error"],
    )


def _checksum(table: pa.Table) -> str:
    return hash_json([table.schema.names, table.to_pylist()])
