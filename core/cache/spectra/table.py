"""Write the table of a run's spectra: values and statistics of every matrix, without the vectors.

Each shard writes the rows of its own matrices beside its part, and `write_spectra_table` concatenates them. So the
table costs one read for each shard instead of one for each of ten thousand spectra.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import CorruptObjectError, ObjectNotFoundError
from ...planning.keys import top_values_key
from ...planning.plan import LayerShard, TensorPlan, decompositions, part_label, top_keys
from ...run import Run
from ...storage.store import Store
from ..parts import shard_table_key
from ..run_folder import TABLE_NAME, run_object_key
from .reader import read_spectrum
from .table_file import TableRow, read_run_table, table_name, write_run_table


def write_shard_table(store: Store, part_key: str, rows: Sequence[TableRow]) -> None:
    """Write a shard's rows beside its part; writes nothing where the shard has no spectra."""
    if rows:
        write_run_table(store, shard_table_key(part_key), rows)


def write_spectra_table(run: Run) -> str | None:
    """Write the table of the run, runs/<run key>/spectra.arrow, in the order of the plan.

    Returns its key; None where the run has no spectra, or does not keep them.

    Cost: one read for each shard, of 8 bytes for each value and statistic: about a thousandth of the weights.
    """
    plan, store = run.plan, run.store
    spectral = [shard for shard in plan.shards if any(_matrices(tensor) for tensor in shard.tensors)]
    if not spectral or plan.settings.spectra == "none":
        return None
    key = run_object_key(plan.run_key, TABLE_NAME)
    write_run_table(store, key, (row for shard in spectral for row in _read_rows(store, shard)))
    return key


def _read_rows(store: Store, shard: LayerShard) -> Iterator[TableRow]:
    """Read the shard's own table; where it is missing or damaged, the spectra that the store has."""
    try:
        rows = list(read_run_table(store, shard_table_key(shard.part_key)))
        expected = {matrix for tensor in shard.tensors for matrix in _matrices(tensor)}
        # A table has no key of its own: other names mean that it was copied from another shard.
        if {(row.name, row.spectrum_key) for row in rows} <= expected:
            yield from rows
            return
    except (ObjectNotFoundError, CorruptObjectError):
        pass
    for tensor in shard.tensors:
        partial = set(top_keys(tensor))
        for name, key in _matrices(tensor):
            place = top_values_key(key) if key in partial else key
            try:
                yield TableRow(name, key, read_spectrum(store, place, values_only=True).spectrum)
            except (ObjectNotFoundError, CorruptObjectError):
                continue  # a part that was found in the store needs no spectra: the table then has fewer rows


def _matrices(tensor: TensorPlan) -> list[tuple[str, str]]:
    """Return the name in the table and the spectrum key of each matrix."""
    return [
        (table_name(tensor.name, part_label(view, one.over_outputs)), one.spectrum_key)
        for view in tensor.views or (None,)
        for one in decompositions(tensor, view)
    ]
