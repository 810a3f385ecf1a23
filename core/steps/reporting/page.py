"""The report as one HTML page: no network, no file beside it. Charts are drawn by Observable Plot, which it contains.

Everything that is from a model is JSON in a script element of type application/json, in which no markup can begin, and
reaches the page as text. The page's policy forbids loading anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import yaml

from ...escaping import printable
from .kinds import KINDS
from .report import ExpertInLayer, LayerReport, Report
from .spectrum_curves import Curve
from .warn import report_warnings

#: By which a page of ours is recognized.
PAGE_MARK = '<meta name="generator" content="eigenmerge report">'
_FOLDER = Path(__file__).parent / "page"
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_COLUMNS = (
    *("name", "kind", "row", "depth", "method", "shape", "rank", "of", "energy", "why", "delta", "relative"),
    *("interference", "svc", "experts", "curves", "notes", "seconds", "origin"),
)
_UNMEASURED = (
    "Interference is not known: of elementwise methods norms and cosines are measured, on a sample of the entries."
    " Nothing is where kept sums replaced experts (keep_sums), with more than 128 experts, or by earlier versions."
)
# Of all layers together: numbers of experts beyond this are left out of the layers, so that the page stays small.
_MOST_EXPERT_ROWS = 20_000


def report_page(report: Report) -> str:
    """Return the page. Equal reports give equal bytes."""
    title = escape(printable(report.title))
    base = f" on <code>{escape(printable(report.base))}</code>" if report.base is not None else ""
    style, libraries, script = _assets()
    head = (
        f'<meta charset="utf-8">{PAGE_MARK}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{title}</title><style>{style}</style>'
    )
    body = (
        f"<header><h1>{title}</h1><p>Merged{base} with Eigenmerge {escape(printable(report.version))}, run"
        f" <code>{escape(printable(report.run_key[:12]))}</code>.</p></header>\n"
        "<noscript><p>The charts need JavaScript; <code>eigenmerge report</code> prints the same on a terminal.</p>"
        '</noscript>\n<main id="main"></main>\n'
        f'<script type="application/json" id="data">{_json(_data(report))}</script>\n'
        f"<script>{libraries}</script>\n<script>{script}</script>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n</body></html>\n'


@cache
def _assets() -> tuple[str, str, str]:
    """Return style, libraries and script of the page; read once."""
    files = ("page.css", "d3.min.js", "plot.umd.min.js", "page.js")
    style, d3, plot, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in files)
    return style, f"{d3}\n{plot}", script


def _json(data: object) -> str:
    """Return JSON that ends no script element: `<`, `>` and `&` are escapes, and everything else is ASCII."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(report: Report) -> dict[str, Any]:
    grids: dict[tuple[int, ...], int] = {}
    with_experts = sum(len(layer.experts) for layer in report.layers) <= _MOST_EXPERT_ROWS
    layers = [_layer(layer, grids, with_experts) for layer in report.layers]
    measured = any(expert.total.interference is not None for expert in report.experts)
    return {
        "facts": [[name, printable(value)] for name, value in report_facts(report) if value],
        "warnings": [printable(text) for text in report_warnings(report)],
        "experts": [
            {
                "name": printable(expert.name),
                "weight": show_weights(expert.weights),
                "placed": _short(expert.placed),
                **dict(
                    zip(
                        ("share", "interference", "cosine", "with_others", "alignment"),
                        _numbers(expert.total),
                        strict=True,
                    )
                ),
            }
            for expert in report.experts
        ],
        "measured": measured,
        "unmeasured": _UNMEASURED,
        "overlap": report.overlap,
        "kinds": KINDS,
        "rows": _rows(report),
        "columns": _COLUMNS,
        "layers": layers,
        "grids": [list(grid) for grid in grids],
        "missing": _missing(report),
        "recipe": printable_lines(yaml.safe_dump(dict(report.recipe), sort_keys=False)),
    }


def report_facts(report: Report) -> list[tuple[str, str]]:
    """Return names and values of the merge as a whole; values may be empty."""
    ranked = [layer for layer in report.layers if layer.rank is not None and layer.directions]
    kept = sum(layer.rank or 0 for layer in ranked)
    whole = sum(layer.directions or 0 for layer in ranked)
    facts = [
        ("method", report.method),
        ("base", report.base or "none"),
        ("experts", str(len(report.experts))),
        ("tensors", ", ".join(f"{count} {name}" for name, count in report.treatments.items())),
        ("directions kept", f"{kept:,} of {whole:,}" if ranked else ""),
        ("interference (base: 1)", "" if report.interference is None else f"{report.interference:.3g}"),
        ("arithmetic", report.arithmetic),
    ]
    if report.costs is not None:
        run = report.costs.run
        computed, reused = run.get("decompositions_computed"), run.get("decompositions_reused")
        facts += [
            ("finished", (report.costs.finished or "").replace("T", " ").replace("+00:00", " UTC")),
            ("last run", f"{run['seconds']:.1f} s" if isinstance(run.get("seconds"), float) else ""),
            ("decompositions", "" if computed is None else f"{computed} computed, {reused} reused"),
            ("computing", f"{report.costs.seconds:.1f} s in all shards, {report.costs.bytes_read:,} bytes read"),
        ]
    return facts


def show_weights(weights: tuple[float, float] | None) -> str:
    """Return the weight of an expert, or its range."""
    if weights is None:
        return "none"
    low, high = weights
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def printable_lines(text: str) -> str:
    """Return text with every character that is not printable as an escape, except ends of lines."""
    return "\n".join(map(printable, text.split("\n")))


def _rows(report: Report) -> list[str]:
    """Return the rows of heat maps, by kind and then in the order of the files."""
    rows = {layer.row: KINDS.index(layer.kind) for layer in report.layers if layer.depth is not None}
    return [printable(row) for row in sorted(rows, key=lambda row: rows[row])]


def _missing(report: Report) -> str:
    return "The store has no spectrum of this layer." if report.missing else ""


def _layer(layer: LayerReport, grids: dict[tuple[int, ...], int], with_experts: bool) -> list[object]:
    experts = [[index, *_numbers(one)] for index, one in sorted(layer.experts.items())] if with_experts else []
    return [
        printable(layer.name),
        layer.kind,
        printable(layer.row),
        layer.depth,
        layer.method,
        " x ".join(map(str, layer.shape)),
        layer.rank,
        layer.directions,
        _short(layer.energy),
        printable(layer.why),
        _short(layer.delta),
        _short(layer.relative_delta),
        _short(layer.interference),
        _short(layer.svc_change),
        experts,
        [_curve(curve, layer.name, grids) for curve in layer.curves],
        [printable(note) for note in layer.notes],
        _short(layer.cost.seconds) if layer.cost is not None else None,
        layer.cost.spectrum if layer.cost is not None else None,
    ]


def _curve(curve: Curve, tensor: str, grids: dict[tuple[int, ...], int]) -> list[object]:
    """Return a curve in hundredths of a decade and thousandths of the energy; curves of one size share their grid."""
    return [
        printable(curve.name.removeprefix(tensor).strip("[]") or "inputs"),
        curve.rank,
        curve.count,
        [round(100 * value) for value in curve.values],
        [round(1000 * energy) for energy in curve.energies],
        grids.setdefault(curve.indices, len(grids)),
        None if curve.floor is None else round(100 * curve.floor),
        curve.singular,
    ]


def _numbers(one: ExpertInLayer) -> Sequence[float | None]:
    values = (one.share, one.interference, one.cosine, one.with_others, one.alignment)
    return [_short(value) for value in values]


def _short(value: float | None) -> float | None:
    """Return a number with three significant digits, which the order of sums does not change."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.3g}")
