"""The result of `eigenmerge.merge` in Python: what the run counted, the checkpoint, its ranks and spectra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..core.cache.result import MergeResult
from ..core.output.read_manifest import Manifest, read_manifest
from ..core.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from ..core.steps.reading.rank_rows import RankRow
    from ..core.steps.reading.run_records import RunRecords
    from .python_report import MergeReport


@dataclass(frozen=True)
class Merge(MergeResult):
    """A finished merge. The fields are those of `MergeResult`; what follows reads the checkpoint and the store.

    store : address of the store that keeps the spectra of the run
    """

    store: str = ""
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return (
            f"Merge({self.destination}: {self.num_experts} experts, {self.num_tensors} tensors, by {self.method};"
            f" run {self.run_key[:12]})"
        )

    def to_dict(self) -> dict[str, object]:
        """Return the counts of the run as JSON content."""
        found = asdict(self)
        del found["storage_options"]
        return found

    @property
    def manifest(self) -> Manifest:
        """The manifest of the checkpoint: inputs, recipe, and what was done with each tensor.

        Raises
        ------
        CheckpointError : the checkpoint was removed or changed
        """
        return read_manifest(Store(self.destination, self.storage_options))

    def ranks(self) -> list[RankRow]:
        """Return for every decomposed matrix how many directions were kept, of how many, their energy, and why."""
        from ..core.steps.reading.rank_rows import rank_rows

        return rank_rows(self.manifest, self._records())

    def report(self) -> MergeReport:
        """Return the report on the merge: text where it is printed, charts in a notebook, `write` for a page.

        Raises
        ------
        CheckpointError : the checkpoint was removed or changed
        """
        from ..core.steps.reporting.costs import read_costs
        from ..core.steps.reporting.report import make_report
        from .python_report import MergeReport

        costs = read_costs(Store(self.store, self.storage_options), self.run_key)
        return MergeReport(make_report(self.manifest, self._records(), costs))

    def spectra(self) -> pa.Table:
        """Return the spectra of all decomposed matrices, one row for each direction, the largest value first.

        Returns
        -------
        pyarrow.Table
            tensor : str, name of the tensor; `tensor[q]` for one matrix of several
            direction : int64, from 0
            value : float64, eigenvalue or singular value, as the method decomposes (`kind`)
            kept : bool, whether the method kept the direction; the number of these is `rank`
            rank : int64, directions that the method kept
            kind : str, of the decomposition
            rows, columns : int64, shape of the matrix, (out, in)
            spectrum_key : str, of the object in the store that has the vectors (`eigenmerge.read_spectrum`)

        Raises
        ------
        StoreError : the store has no spectra of the run: `spectra: none`, or they were removed
        """
        import pyarrow as pa

        records = self._records()
        if records.missing:
            from ..core.errors import StoreError

            raise StoreError(f"{records.missing}; merge with a store, and with `spectra: full` or `values`")
        columns: dict[str, list[object]] = {name: [] for name in _types()}
        for row in self._directions(records):
            for name, value in row.items():
                columns[name].append(value)
        arrays = [pa.array(values, type=_types()[name]) for name, values in columns.items()]
        return pa.Table.from_arrays(arrays, schema=pa.schema([pa.field(name, kind) for name, kind in _types().items()]))

    def values(self, tensor: str) -> Any:
        """Return the eigenvalues or singular values of one decomposed matrix, (directions,), numpy float64.

        Parameters
        ----------
        tensor : name of the tensor; `tensor[q]` for one matrix of several

        Raises
        ------
        KeyError : the matrix was not decomposed, or the store has no spectrum of it
        """
        rows = self._records().rows
        if tensor not in rows:
            from ..core.errors import suggestion

            raise KeyError(f"{tensor}: no spectrum of this matrix is in the store{suggestion(tensor, rows)}")
        return rows[tensor].spectrum.values.double().numpy()

    def _records(self) -> RunRecords:
        from ..core.steps.reading.run_records import read_run_records

        return read_run_records(Store(self.store, self.storage_options), self.run_key)

    def _directions(self, records: RunRecords) -> Iterator[dict[str, object]]:
        ranks = {row.name: row.rank for row in self.ranks()}
        for name, row in records.rows.items():
            rank = ranks.get(name)
            for direction, value in enumerate(map(float, row.spectrum.values.double())):
                yield {
                    "tensor": name,
                    "direction": direction,
                    "value": value,
                    "kept": None if rank is None else direction < rank,
                    "rank": rank,
                    "kind": row.spectrum.kind,
                    "rows": row.spectrum.shape[0],
                    "columns": row.spectrum.shape[1],
                    "spectrum_key": row.spectrum_key,
                }


def with_places(result: MergeResult, store: str, storage_options: Mapping[str, Any] | None) -> Merge:
    """Return a result that can read its checkpoint and the store of the run."""
    counts: dict[str, Any] = {one.name: getattr(result, one.name) for one in fields(MergeResult)}
    return Merge(**counts, store=store, storage_options=storage_options)


def _types() -> dict[str, pa.DataType]:
    import pyarrow as pa

    return {
        "tensor": pa.string(),
        "direction": pa.int64(),
        "value": pa.float64(),
        "kept": pa.bool_(),
        "rank": pa.int64(),
        "kind": pa.string(),
        "rows": pa.int64(),
        "columns": pa.int64(),
        "spectrum_key": pa.string(),
    }
