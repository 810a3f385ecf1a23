"""Find what the store kept of a finished merge: its spectra and its times. A checkpoint alone has neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...cache.run_folder import TABLE_NAME, run_object_key
from ...cache.runs import read_run
from ...cache.spectra.table_file import TableRow, read_run_table
from ...errors import CorruptObjectError, ObjectNotFoundError, StoreError
from ...storage.store import Store


@dataclass(frozen=True, slots=True)
class RunRecords:
    """What the store has of one run.

    place : of the store, for messages
    rows : by the name of the tensor, or "tensor[q]" for one matrix of several; without vectors
    facts : content of run.json; empty where it is missing
    missing : why spectra are missing; "" where they are there
    """

    place: str
    rows: Mapping[str, TableRow] = field(default_factory=dict[str, TableRow])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    missing: str = ""

    def matrices(self, tensor: str) -> list[TableRow]:
        """Return the rows of a tensor: one for each decomposition of each of its matrices."""
        own = self.rows.get(tensor)
        parts = [row for name, row in self.rows.items() if name.startswith(f"{tensor}[")]
        return parts if own is None else [own, *parts]


def read_run_records(store: Store, run_key: str) -> RunRecords:
    """Return what the store has of a run. A store that is not reachable, or has nothing of the run, is no error."""
    place = store.display("")
    try:
        rows = {row.name: row for row in read_run_table(store, run_object_key(run_key, TABLE_NAME))}
        missing = ""
    except ObjectNotFoundError:
        rows, missing = {}, f"the store {place} has no spectra of this run"
    except (CorruptObjectError, StoreError) as error:
        rows, missing = {}, str(error)
    try:
        facts = read_run(store, run_key)
    except StoreError:
        facts = {}
    return RunRecords(place, rows, facts, missing)
