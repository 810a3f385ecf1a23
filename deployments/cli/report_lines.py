"""The text of `eigenmerge report`: facts, warnings, experts, kinds of layers, and one layer with its spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .table import table_lines, wrapped_lines

if TYPE_CHECKING:
    from ...core.steps.reporting.report import ExpertInLayer, LayerReport, Report
    from ...core.steps.reporting.spectrum_curves import Curve

_MOST_SHOWN = 10
_MOST_IN_OVERLAP = 8
_BARS = " ▁▂▃▄▅▆▇█"
_BAR_WIDTH = 60
_DECADES = 8.0  # from the top of a bar to its bottom
_EXPERT_COLUMNS = ("share", "interference", "cosine", "with others", "alignment")


def report_lines(
    report: Report, width: int | None, *, chosen: LayerReport | None = None, all_tensors: bool = False
) -> list[str]:
    """Return the text of a report, or that on one of its layers. Only names are shortened to the width.

    Parameters
    ----------
    chosen : a layer to show instead of all
    all_tensors : list all merged tensors
    """
    from ...core.steps.reporting.page import report_facts
    from ...core.steps.reporting.warn import report_warnings

    names = [expert.name for expert in report.experts]
    if chosen is not None:
        return _chosen_lines(chosen, names, width, report.missing)
    facts = [(name, value) for name, value in report_facts(report) if value]
    size = max(len(name) for name, _ in facts)
    lines = wrapped_lines([f"{name:{size}}  {value}" for name, value in facts], width, indent=size + 2)
    lines += wrapped_lines([f"warning: {text}" for text in report_warnings(report)], width)
    lines += ["", *_expert_lines(report, width), *_overlap_lines(report, width)]
    lines += _kind_lines(report.layers, width)
    lines += _tensor_lines(report, width, all_tensors)
    if report.missing:
        lines += ["", *wrapped_lines([f"spectra: {report.missing}; --store names the store of the merge"], width)]
    return lines


def _expert_lines(report: Report, width: int | None) -> list[str]:
    from ...core.steps.reporting.page import show_weights

    rows = [
        (show_weights(expert.weights), _percent(expert.placed), *_expert_cells(expert.total), expert.name)
        for expert in report.experts
    ]
    lines = table_lines(("weight", "arrived", *_EXPERT_COLUMNS, "expert"), rows, width)
    note = (
        "interference: error on the expert's own inputs (WUDI's loss), base = 1, 0 = all of it kept; cosine: with the"
        " merged change; alignment: share of its norm in the kept directions; estimated with random probes"
    )
    return lines + wrapped_lines([note], width)


def _overlap_lines(report: Report, width: int | None) -> list[str]:
    if report.overlap is None or len(report.experts) > _MOST_IN_OVERLAP:
        return []
    count = len(report.experts)
    rows = [
        (*(_number(value) for value in row), f"{index + 1} {expert.name}")
        for index, (row, expert) in enumerate(zip(report.overlap, report.experts, strict=False))
    ]
    columns = (*(str(index + 1) for index in range(count)), "expert")
    return ["", "overlap: cosines of the experts' task vectors", *table_lines(columns, rows, width)]


def _kind_lines(layers: Sequence[LayerReport], width: int | None) -> list[str]:
    rows: dict[str, list[LayerReport]] = {}
    for layer in layers:
        rows.setdefault(layer.row, []).append(layer)
    if len(rows) == len(layers):  # every tensor is the only one of its kind
        return []
    cells = [
        (
            str(len(members)),
            _range([layer.rank for layer in members]),
            _range([layer.directions for layer in members]),
            _percent(_mean([layer.energy for layer in members])),
            _number(_mean([layer.interference for layer in members])),
            _number(_mean([layer.relative_delta for layer in members])),
            row,
        )
        for row, members in rows.items()
    ]
    columns = ("tensors", "rank", "of", "energy", "interference", "norm", "kind (means over the layers)")
    return ["", *table_lines(columns, cells, width)]


def _tensor_lines(report: Report, width: int | None, all_tensors: bool) -> list[str]:
    layers = list(report.layers)
    title = f"merged tensors ({len(layers)})"
    if not all_tensors:
        ordered = sorted(layers, key=lambda layer: -(layer.interference or 0.0))
        layers = [layer for layer in ordered if layer.interference is not None][:_MOST_SHOWN]
        title = f"tensors with the most interference ({len(layers)} of {len(report.layers)})"
    if not layers:
        return []
    timed = report.costs is not None and all_tensors
    columns = ("rank", "of", "energy", "interference", "norm", *(("seconds", "spectrum") if timed else ()), "tensor")
    rows = [
        (
            _whole(layer.rank),
            _whole(layer.directions),
            _percent(layer.energy),
            _number(layer.interference),
            _number(layer.delta),
            *((_number(layer.cost.seconds), layer.cost.spectrum) if timed and layer.cost else ("-", "-") * timed),
            layer.name,
        )
        for layer in layers
    ]
    return ["", title, *table_lines(columns, rows, width)]


def _chosen_lines(layer: LayerReport, names: Sequence[str], width: int | None, missing: str) -> list[str]:
    of = f" of {layer.directions}" if layer.directions is not None else ""
    facts = {
        "kind": layer.kind,
        "method": layer.method,
        "shape": " x ".join(map(str, layer.shape)),
        "rank": f"{layer.rank}{of}: {layer.why}" if layer.rank is not None else "",
        "energy": "" if layer.energy is None else _percent(layer.energy),
        "norm": "" if layer.delta is None else f"{layer.delta:.3g}, {_number(layer.relative_delta)} of the mean expert",
        "interference": "" if layer.interference is None else f"{layer.interference:.3g} (base: 1)",
        "SVC": "" if layer.svc_change is None else f"changes {layer.svc_change:.2g} of the norm",
        "cost": "" if layer.cost is None else f"{layer.cost.seconds:.3g} s, spectrum {layer.cost.spectrum}",
    }
    lines = [layer.name, *(f"  {name:13} {value}" for name, value in facts.items() if value)]
    lines = wrapped_lines([*lines, *(f"  note          {note}" for note in layer.notes)], width, indent=14)
    if layer.experts:
        rows = [(*_expert_cells(one), names[index]) for index, one in sorted(layer.experts.items())]
        lines += ["", *table_lines((*_EXPERT_COLUMNS, "expert"), rows, width)]
    for curve in layer.curves:
        lines += _curve_lines(curve, missing)
    return lines


def _curve_lines(curve: Curve, missing: str) -> list[str]:
    """Return a spectrum as one line of bars, on a log scale over eight decades, with marks below it."""
    if not curve.values:
        return ["", f"{curve.name}: {missing or 'no spectrum'}"]
    count = min(_BAR_WIDTH, curve.count)
    bars, marks = "", ""
    at = 0
    for column in range(count):
        index = 1 + round(column * (curve.count - 1) / max(1, count - 1))
        while at + 1 < len(curve.indices) and curve.indices[at + 1] <= index:
            at += 1
        value = curve.values[at]
        bars += _BARS[max(0, min(8, math.ceil(8 * (1.0 + value / _DECADES))))]
        below = curve.floor is not None and value < curve.floor
        marks += "k" if index <= curve.rank else "n" if below else "."
    what = "singular values" if curve.singular else "eigenvalues"
    legend = "k: kept" + (", n: below the level of rounding" if "n" in marks else "")
    energy = next((one for index, one in zip(curve.indices, curve.energies, strict=True) if index >= curve.rank), None)
    held = "" if energy is None else f", which hold {energy:.1%}"
    return [
        "",
        f"{curve.name}: {curve.count} {what} over {_DECADES:.0f} decades; kept {curve.rank}{held}",
        f"  {bars}",
        f"  {marks}  {legend}",
    ]


def _expert_cells(one: ExpertInLayer) -> tuple[str, ...]:
    return (
        _percent(one.share),
        _number(one.interference),
        _number(one.cosine),
        _number(one.with_others),
        _percent(one.alignment),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _range(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return str(min(known)) if min(known) == max(known) else f"{min(known)}-{max(known)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _whole(value: int | None) -> str:
    return "-" if value is None else str(value)
