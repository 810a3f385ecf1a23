"""The report on a merge for Prefect's pages: tables in Markdown, and the address of the page in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.errors import EigenmergeError
from ..core.escaping import markdown_name, markdown_text
from ..core.formats.file_names import REPORT_NAME
from ..core.output.read_manifest import read_manifest
from ..core.run import Run
from ..core.steps.reading.run_records import RunRecords
from ..core.steps.reporting.page import report_facts, show_weights
from ..core.steps.reporting.report import LayerReport, Report, make_report
from ..core.steps.reporting.warn import report_warnings
from ..core.storage.addresses import absolute_uri
from ..core.storage.store import Store

_MOST_ROWS = 200


def report_of(run: Run, destination: str) -> Report | None:
    """Return the report without spectra; None where the checkpoint cannot be read (any more)."""
    try:
        return make_report(read_manifest(Store(destination, run.storage_options)), RunRecords(run.store.display("")))
    except EigenmergeError:  # the report is no part of the result
        return None


def report_link(run: Run, destination: str) -> str | None:
    """Return the address of the page; None where the merge wrote none."""
    place = Store(destination, run.storage_options)
    if not place.exists(REPORT_NAME):
        return None
    if place.is_local:
        return (Path(absolute_uri(destination)) / REPORT_NAME).resolve().as_uri()
    return f"{destination.rstrip('/')}/{REPORT_NAME}"


def report_markdown(report: Report) -> str:
    """Return facts, warnings, experts, and one row for the weights of a kind."""
    lines = [f"* {name}: {markdown_text(value)}" for name, value in report_facts(report) if value]
    lines += ["", *(f"> {markdown_text(text)}\n" for text in report_warnings(report))]
    experts = [
        (
            markdown_name(expert.name),
            show_weights(expert.weights),
            _percent(expert.total.share),
            _number(expert.total.interference),
            _number(expert.total.cosine),
            _number(expert.total.with_others),
        )
        for expert in report.experts[:_MOST_ROWS]
    ]
    lines += _table(("expert", "weight", "share", "interference (base: 1)", "cosine", "with others"), experts)
    lines += ["", *_table(("weights", "tensors", "rank", "of", "interference", "norm"), _kinds(report.layers))]
    return "\n".join(lines)


def _kinds(layers: Sequence[LayerReport]) -> list[tuple[str, ...]]:
    """Return a row of means for the weights that have the same name in every layer."""
    rows: dict[str, list[LayerReport]] = {}
    for layer in layers:
        rows.setdefault(layer.row, []).append(layer)
    return [
        (
            markdown_name(row),
            str(len(members)),
            _number(_mean(layer.rank for layer in members)),
            _number(_mean(layer.directions for layer in members)),
            _number(_mean(layer.interference for layer in members)),
            _number(_mean(layer.relative_delta for layer in members)),
        )
        for row, members in list(rows.items())[:_MOST_ROWS]
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
