"""Ranks of a finished merge, per matrix: how many directions were kept, of how many, how much they hold, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...cache.spectra.table_file import TableRow, table_name
from ...errors import EigenmergeError
from ...numerics.method import SpectralMethod
from ...numerics.registry import get_planned_method
from ...output.read_manifest import Manifest, ManifestTensor
from ...recipe.recipe import Recipe, recipe_from_mapping
from .parameter_origins import parameter_origins
from .run_records import RunRecords


@dataclass(frozen=True, slots=True)
class RankRow:
    """One decomposed matrix.

    name : of the tensor, or "tensor[q]" for one matrix of several, "tensor[outputs]" for a decomposition over outputs
    rank : directions that the method kept; of a whole tensor whose matrices are not in the store, their sum
    directions : of the matrix, K = in features (M = out features over outputs); None where only the store knows
    resolved : directions of the decomposition that are no rounding; None without the store
    energy : share of the sum of the eigenvalues (or singular values) in the kept directions, 0 to 1
    last_kept, first_dropped : eigenvalues (or singular values) around the cut, as a share of the largest; None without
        the store, or where nothing is dropped
    why : the parameters that chose the rank, with their places in the recipe
    """

    name: str
    rank: int
    directions: int | None
    resolved: int | None
    energy: float | None
    last_kept: float | None
    first_dropped: float | None
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON data."""
        return asdict(self)


def rank_rows(manifest: Manifest, records: RunRecords) -> list[RankRow]:
    """Return a row for every matrix that was decomposed, in the order of the files.

    Raises
    ------
    RecipeError : this version cannot read the recipe of the manifest
    """
    recipe = recipe_from_mapping(manifest.recipe, "the manifest's recipe")
    reasons: dict[object, str] = {}
    rows: list[RankRow] = []
    for tensor in manifest.tensors:
        if tensor.rank is not None:
            rows += _rows_of(tensor, records, rank_reason(recipe, manifest, tensor, reasons))
    return rows


def rank_reason(
    recipe: Recipe, manifest: Manifest, tensor: ManifestTensor, known: dict[object, str] | None = None
) -> str:
    """Return what chose the rank, such as "rank_ratio 0.85 (parameters)".

    Parameters
    ----------
    known : reasons of tensors that have been asked for, which are added to; layers of one kind share theirs
    """
    origins = parameter_origins(recipe, manifest, tensor)
    key = (
        tensor.method,
        tuple(sorted((name, repr(value)) for name, value in tensor.parameters.items())),
        tuple(origins.items()),
    )
    if known is not None and key in known:
        return known[key]
    # Of a method without a parameter for the rank, the other parameters decide.
    names = [name for name in tensor.parameters if "rank" in name] or [
        name for name in tensor.parameters if name != "scale"
    ]
    parts = [
        f"{name} {_show(tensor.parameters[name])} ({origins[name]})"
        for name in names
        if tensor.parameters[name] is not None and not _is_idle(name, tensor.parameters[name])
    ]
    calibrated = "; SVC" if recipe.calibration is not None and recipe.calibration.svc is not None else ""
    text = f"{tensor.method}: {', '.join(parts) or 'keeps all that is not rounding'}{calibrated}"
    if known is not None:
        known[key] = text
    return text


# Values of parameters that change no rank.
_IDLE = {"rank_scale": 1.0, "min_rank": 1, "max_rank_ratio": 1.0}


def _is_idle(name: str, value: object) -> bool:
    return name in _IDLE and value == _IDLE[name]


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rows_of(tensor: ManifestTensor, records: RunRecords, why: str) -> list[RankRow]:
    assert tensor.rank is not None
    matrices = records.matrices(tensor.name)
    ranks = [tensor.rank] if len(matrices) == 1 else [_recomputed_rank(tensor, row) for row in matrices]
    total = tensor.rank + (tensor.outputs_rank or 0)
    if not matrices or None in ranks or sum(rank or 0 for rank in ranks) != total:
        is_over_outputs = tensor.decomposed_over == ["outputs"]
        rows = [(table_name(tensor.name, "outputs" if is_over_outputs else None), tensor.rank, tensor.energy)]
        if tensor.outputs_rank is not None:
            rows.append((table_name(tensor.name, "outputs"), tensor.outputs_rank, tensor.outputs_energy))
        sizes = [None, None] if tensor.num_matrices is not None else _sizes(tensor, swapped=is_over_outputs)
        return [
            RankRow(name, rank, size, None, energy, None, None, why)
            for (name, rank, energy), size in zip(rows, sizes, strict=False)
        ]
    return [_row(row, rank or 0, why) for row, rank in zip(matrices, ranks, strict=True)]


def _recomputed_rank(tensor: ManifestTensor, row: TableRow) -> int | None:
    """Return the rank of one matrix of several, of which the manifest has the sum: the filter needs no vectors."""
    if tensor.method is None:
        return None
    try:
        method = get_planned_method(tensor.method, tensor.method_package)
        if not isinstance(method, SpectralMethod):
            return None
        return method.factors(row.spectrum, method.Parameters.model_validate(tensor.parameters)).rank
    except (EigenmergeError, ValueError):  # another version of the method
        return None


def _row(row: TableRow, rank: int, why: str) -> RankRow:
    values = row.spectrum.values.double()
    total, largest = float(values.sum()), float(values[0]) if len(values) else 0.0

    def share(index: int) -> float | None:
        return float(values[index]) / largest if 0 <= index < len(values) and largest > 0 else None

    energy = float(values[:rank].sum()) / total if total > 0 else None
    rows, columns = row.spectrum.shape
    return RankRow(
        row.name,
        rank,
        columns if row.spectrum.kind.startswith("interference") else min(rows, columns),
        len(values),
        energy,
        share(rank - 1),
        share(rank),
        why,
    )


def _sizes(tensor: ManifestTensor, *, swapped: bool) -> list[int | None]:
    """Return the numbers of inputs and of outputs, in this order or the reverse."""
    shape = tensor.matrix_shape or tensor.shape
    if len(shape) < 2:
        return [None, None]
    rows, columns = shape[-2:]
    return [rows, columns] if swapped != (tensor.orientation == "in_out") else [columns, rows]
