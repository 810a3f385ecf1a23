"""The content of a report on a finished merge, from its manifest and from what the store kept of its run.

It has no times, addresses of stores or origins of spectra: the page in a checkpoint depends on nothing else. The
command may add what `read_costs` finds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import CheckpointError, suggestion
from ...output.read_manifest import Manifest, ManifestMeasures, ManifestTensor
from ..reading.explain_tensor import energy_shares
from ..reading.rank_rows import RankRow, rank_rows
from ..reading.run_records import RunRecords
from .costs import Costs, TensorCost
from .kinds import depth_of, kind_of, row_of, stack_of
from .spectrum_curves import Curve, curve_of, points_per_curve

_MOST_CURVES_OF_A_TENSOR = 6
_MARGIN = 0.8  # of a distance that follows from an estimated cosine


@dataclass(frozen=True, slots=True)
class ExpertInLayer:
    """One expert in one tensor. None: not known.

    share : of the squared norms of the weighted task vectors, 0 to 1
    interference : WUDI's loss at the merged weight, relative to that at the base: 0 where all outputs of the expert on
        its own inputs are kept, 1 as without a merge
    cosine : of its task vector with the merged delta
    with_others : of its task vector with the sum of the others; below 0 they conflict
    alignment : norm of its part in the kept directions, relative to its norm
    """

    share: float | None = None
    interference: float | None = None
    cosine: float | None = None
    with_others: float | None = None
    alignment: float | None = None


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One tensor that a method merged. None: not known, or it has none.

    row : name of the same weight in every layer
    rank, directions, energy : kept, of how many, and their share of the sum of the eigenvalues
    delta : norm of the merged delta
    relative_delta : that norm, relative to the root mean square of the experts' norms
    is_farther : whether the merged weight is farther from every expert than the base is
    interference : as of an expert, of all together
    experts : by the index of the expert
    """

    name: str
    kind: str
    row: str
    depth: int | None
    method: str
    shape: tuple[int, ...]
    rank: int | None
    directions: int | None
    energy: float | None
    why: str
    noise: float | None
    delta: float | None
    relative_delta: float | None
    is_farther: bool | None
    interference: float | None
    svc_change: float | None
    experts: Mapping[int, ExpertInLayer]
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    cost: TensorCost | None = None


@dataclass(frozen=True, slots=True)
class ExpertReport:
    """One expert over all tensors; fields as `ExpertInLayer`, and what arrived of it.

    weights : smallest and largest; None where it took part in no tensor
    placed : share of its parameters that have a place in the output
    """

    name: str
    kind: str
    weights: tuple[float, float] | None
    placed: float | None
    total: ExpertInLayer


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of one merge.

    treatments : number of tensors by method or action
    overlap : cosines of the experts' task vectors
    missing : why spectra are missing; "" where they are there
    """

    title: str
    method: str
    base: str | None
    arithmetic: str
    version: str
    run_key: str
    recipe: Mapping[str, Any]
    experts: tuple[ExpertReport, ...]
    treatments: Mapping[str, int]
    layers: tuple[LayerReport, ...]
    overlap: Sequence[Sequence[float | None]] | None
    interference: float | None
    plan_warnings: tuple[str, ...]
    missing: str = ""
    costs: Costs | None = None


@dataclass(slots=True)
class _Sums:
    """Sums over tensors, from which the values of the whole model follow."""

    squares: float = 0.0
    before: float = 0.0
    after: float = 0.0
    along: float = 0.0
    against: float = 0.0
    within: float = 0.0
    squares_within: float = 0.0
    delta: float = 0.0
    weights: list[float] = field(default_factory=list[float])


def make_report(manifest: Manifest, records: RunRecords, costs: Costs | None = None) -> Report:
    """Return the report on a merge.

    Parameters
    ----------
    records : of the run; without them there are no spectra
    costs : seconds, bytes and origins, which differ between runs with equal results

    Raises
    ------
    RecipeError : this version cannot read the recipe of the manifest
    """
    ranks: dict[str, list[RankRow]] = {}
    for row in rank_rows(manifest, records):
        ranks.setdefault(_tensor_of(row.name), []).append(row)
    shown = [tensor for tensor in manifest.tensors if tensor.method is not None or tensor.measures is not None]
    stacks = {stack for tensor in shown if (stack := stack_of(tensor.name)) is not None}
    points = points_per_curve(sum(min(len(rows), _MOST_CURVES_OF_A_TENSOR) for rows in ranks.values()))
    sums = [_Sums() for _ in manifest.experts]
    layers = [
        _layer(manifest, tensor, ranks.get(tensor.name, []), records, sums, points, len(stacks) > 1, costs)
        for tensor in shown
    ]
    for tensor in manifest.tensors:
        for index, weight in zip(_order(manifest, tensor), tensor.weights or (), strict=False):
            sums[index].weights.append(weight)
    everything = sum(one.squares for one in sums)
    return Report(
        title=f"{manifest.recipe.get('merge_method')}: {len(manifest.experts)} experts",
        method=str(manifest.recipe.get("merge_method")),
        base=manifest.base.name if manifest.base is not None else None,
        arithmetic=manifest.arithmetic,
        version=manifest.eigenmerge,
        run_key=manifest.run_key,
        recipe=manifest.recipe,
        experts=tuple(
            ExpertReport(
                model.name,
                model.kind,
                (min(one.weights), max(one.weights)) if one.weights else None,
                model.share_placed,
                _total(one, everything),
            )
            for model, one in zip(manifest.experts, sums, strict=True)
        ),
        treatments=dict(Counter(tensor.method or tensor.action for tensor in manifest.tensors)),
        layers=tuple(layers),
        overlap=_square(manifest.expert_overlap, len(manifest.experts)),
        interference=_ratio(sum(one.after for one in sums), sum(one.before for one in sums)),
        plan_warnings=tuple(manifest.warnings),
        missing=records.missing if ranks else "",
        costs=costs,
    )


def find_layer(report: Report, name: str) -> LayerReport:
    """Return the merged tensor of that name.

    Raises
    ------
    CheckpointError : there is none; names the nearest
    """
    for layer in report.layers:
        if layer.name == name:
            return layer
    names = [layer.name for layer in report.layers]
    hint = suggestion(name, names) or (f"; names look like {names[0]}" if names else "")
    raise CheckpointError(f"tensor {name!r}: no method merged a tensor of this name{hint}")


def _layer(
    manifest: Manifest,
    tensor: ManifestTensor,
    ranks: Sequence[RankRow],
    records: RunRecords,
    sums: Sequence[_Sums],
    points: int,
    with_stack: bool,
    costs: Costs | None,
) -> LayerReport:
    stack = stack_of(tensor.name)
    sizes = [row.directions for row in ranks if row.directions is not None]
    measures = tensor.measures
    return LayerReport(
        name=tensor.name,
        kind=kind_of(tensor.name),
        row=f"{stack}.*.{row_of(tensor.name)}" if with_stack and stack is not None else row_of(tensor.name),
        depth=depth_of(tensor.name),
        method=tensor.method or tensor.action,
        shape=tuple(tensor.shape),
        rank=None if tensor.rank is None else tensor.rank + (tensor.outputs_rank or 0),
        directions=sum(sizes) if sizes and len(sizes) == len(ranks) else None,
        energy=tensor.energy,
        why=ranks[0].why if ranks else "",
        noise=tensor.storage_noise,
        delta=measures.delta if measures is not None else None,
        relative_delta=_relative_delta(measures) if measures is not None else None,
        is_farther=_is_farther(measures) if measures is not None else None,
        interference=_ratio(sum(measures.after or ()), sum(measures.before or ())) if measures else None,
        svc_change=tensor.svc_change,
        experts=_experts(manifest, tensor, records, sums),
        curves=tuple(curve_of(row, records.rows.get(row.name), points) for row in _few_of(ranks)),
        notes=tuple(tensor.notes),
        cost=costs.tensors.get(tensor.name) if costs is not None else None,
    )


def _experts(
    manifest: Manifest, tensor: ManifestTensor, records: RunRecords, sums: Sequence[_Sums]
) -> dict[int, ExpertInLayer]:
    """Return what is known of each expert in a tensor, and add it to the sums."""
    order = _order(manifest, tensor)
    shares = energy_shares(tensor, records, len(order))
    measures = tensor.measures
    if measures is None or not _fit(measures, len(order)):
        return {index: ExpertInLayer(share) for index, share in zip(order, shares, strict=False)}
    found: dict[int, ExpertInLayer] = {}
    squares = [norm * norm for norm in measures.norms]
    before, after = measures.before or [0.0] * len(order), measures.after or [0.0] * len(order)
    alignment = measures.alignment or [None] * len(order)
    for place, index in enumerate(order):
        norm, total = measures.norms[place], sums[index]
        total.squares += squares[place]
        total.before += before[place]
        total.after += after[place]
        total.along += measures.cosines[place] * norm * measures.delta
        total.delta += measures.delta * measures.delta
        total.against += measures.with_others[place] * squares[place]
        aligned = alignment[place]
        if aligned is not None:
            total.within += aligned * aligned * squares[place]
            total.squares_within += squares[place]
        found[index] = ExpertInLayer(
            shares[place] if place < len(shares) else None,
            _ratio(after[place], before[place]),
            measures.cosines[place],
            measures.with_others[place],
            aligned,
        )
    return found


def _relative_delta(measures: ManifestMeasures) -> float | None:
    mean = math.sqrt(sum(norm * norm for norm in measures.norms) / max(1, len(measures.norms)))
    return measures.delta / mean if mean > 0 else None


def _is_farther(measures: ManifestMeasures) -> bool:
    """Return whether ||theta - v_i|| > ||v_i||, that is ||theta|| > 2 cos_i ||v_i||, for all experts that are not 0."""
    nearest = [2.0 * cosine * norm for cosine, norm in zip(measures.cosines, measures.norms, strict=False) if norm > 0]
    return bool(nearest) and measures.delta > 0 and all(near < _MARGIN * measures.delta for near in nearest)


def _fit(measures: ManifestMeasures, count: int) -> bool:
    """Return whether there is one number for each expert: the manifest may have been changed."""
    lists = (
        measures.norms,
        measures.before,
        measures.after,
        measures.cosines,
        measures.with_others,
        measures.alignment,
    )
    return all(one is None or len(one) == count for one in lists)


def _square(table: Sequence[Sequence[float | None]] | None, count: int) -> Sequence[Sequence[float | None]] | None:
    """Return a table of (N, N); None where it has another shape."""
    is_square = table is not None and len(table) == count and all(len(row) == count for row in table)
    return table if is_square else None


def _total(one: _Sums, everything: float) -> ExpertInLayer:
    if everything == 0.0:
        return ExpertInLayer()
    norms = math.sqrt(one.squares * one.delta)
    return ExpertInLayer(
        share=one.squares / everything,
        interference=_ratio(one.after, one.before),
        cosine=one.along / norms if norms > 0 else None,
        with_others=one.against / one.squares if one.squares > 0 else None,
        alignment=math.sqrt(one.within / one.squares_within) if one.squares_within > 0 else None,
    )


def _order(manifest: Manifest, tensor: ManifestTensor) -> Sequence[int]:
    """Return the index of the expert behind each entry of a tensor's lists; empty where the manifest is damaged."""
    at = tensor.expert_order
    order = manifest.expert_orders[at] if at is not None and 0 <= at < len(manifest.expert_orders) else []
    return order if all(0 <= index < len(manifest.experts) for index in order) else []


def _tensor_of(row: str) -> str:
    """Return the tensor of a row: "tensor[q]" and "tensor[outputs]" are of "tensor"."""
    return row.rpartition("[")[0] if row.endswith("]") else row


def _few_of(ranks: Sequence[RankRow]) -> Sequence[RankRow]:
    """Return at most six of the matrices of a tensor, at equal distances."""
    step = math.ceil(len(ranks) / _MOST_CURVES_OF_A_TENSOR)
    return ranks[:: max(1, step)]


def _ratio(after: float, before: float) -> float | None:
    return after / before if before > 0 else None
