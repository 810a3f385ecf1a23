"""The scores of a sweep: those of earlier runs in the store, and those of this one, which are written at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import final

from ..cache.sweep_tables import SweepRow, read_sweep_table, write_sweep_table
from ..errors import CorruptObjectError, ObjectNotFoundError
from ..storage.store import Store


@final
class ScoreBook:
    """Rows by candidate. Thread-safe. Another process that scores the same sweep adds to the same table.

    note : what is wrong with the table that the store has; "" where nothing is

    Parameters
    ----------
    fresh : evaluate candidates again that have a row
    """

    def __init__(self, store: Store, sweep_key: str, *, fresh: bool = False) -> None:
        self._store, self._key = store, sweep_key
        self.note = ""
        self._lock = threading.Lock()
        self._rows = self._stored()
        self._usable = set() if fresh else {key for key, row in self._rows.items() if row.status != "failed"}

    def find(self, candidate: str) -> SweepRow | None:
        """Return the row of a candidate that need not be evaluated again; a failed one is."""
        with self._lock:
            return self._rows[candidate] if candidate in self._usable else None

    def add(self, rows: Iterable[SweepRow]) -> None:
        """Add rows, and write the table with them and with those that other processes have added since."""
        with self._lock:
            new = {row.candidate: row for row in rows}
            self._rows = {**self._stored(), **self._rows, **new}
            self._usable |= {key for key, row in new.items() if row.status != "failed"}
            write_sweep_table(self._store, self._key, list(self._rows.values()))

    def _stored(self) -> dict[str, SweepRow]:
        try:
            return {row.candidate: row for row in read_sweep_table(self._store, self._key)}
        except ObjectNotFoundError:
            return {}
        except CorruptObjectError as error:
            self.note = f"{error}; its candidates are scored again"
            return {}
