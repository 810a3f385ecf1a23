"""The table of a run's spectra: values and statistics of every matrix, without the vectors, in one Arrow file.

Each shard leaves the rows of its own matrices beside its part, while it has them in hand; the reduce strings them
together. So the table costs one read a shard, not one for each of ten thousand spectra.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import CorruptObjectError, ObjectNotFoundError
from ...planning.plan import LayerShard, TensorPlan, spectrum_keys
from ...run import Run
from ...storage.store import Store
from ..parts import shard_table_key
from ..run_folder import TABLE_NAME, run_object_key
from .reader import read_spectrum
from .table_file import TableRow, read_run_table, write_run_table


def write_shard_table(store: Store, part_key: str, rows: Sequence[TableRow]) -> None:
    """Leave a shard's rows beside its part; nothing where it decomposed nothing."""
    if rows:
        write_run_table(store, shard_table_key(part_key), rows)


def write_spectra_table(run: Run) -> str | None:
    """Write runs/<run key>/spectra.arrow, in the order of the plan; its key, None where nothing is kept of spectra.

    Cost: one read a shard, of 8 bytes for each value and statistic: about a thousandth of the weights.
    """
    plan, store = run.plan, run.store
    spectral = [shard for shard in plan.shards if any(_matrices(tensor) for tensor in shard.tensors)]
    if not spectral or plan.settings.spectra == "none":
        return None
    key = run_object_key(plan.run_key, TABLE_NAME)
    write_run_table(store, key, (row for shard in spectral for row in _rows(store, shard)))
    return key


def _rows(store: Store, shard: LayerShard) -> Iterator[TableRow]:
    """From the shard's own table; where that is gone or damaged, from the spectra that are still there."""
    try:
        rows = read_run_table(store, shard_table_key(shard.part_key))
        expected = {matrix for tensor in shard.tensors for matrix in _matrices(tensor)}
        if {(row.name, row.spectrum_key) for row in rows} <= expected:  # else it is another shard's
            yield from rows
            return
    except (ObjectNotFoundError, CorruptObjectError):
        pass
    for tensor in shard.tensors:
        for name, key in _matrices(tensor):
            try:
                yield TableRow(name, key, read_spectrum(store, key, values_only=True).spectrum)
            except (ObjectNotFoundError, CorruptObjectError):
                continue  # the merge itself did not need it any more


def _matrices(tensor: TensorPlan) -> list[tuple[str, str]]:
    """Name in the table and spectrum key of each matrix."""
    names = [f"{tensor.name}[{view.label}]" for view in tensor.views] or [tensor.name]
    return list(zip(names, spectrum_keys(tensor), strict=False))
