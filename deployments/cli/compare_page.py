"""The HTML page of a comparison: one file without scripts and without anything from the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ...core.escaping import printable
from .commands.compare_command import PAGE_MARK, describe_model, describe_shapes, show_value, summary_lines
from .options import show_count

if TYPE_CHECKING:
    from ...core.steps.reading.compare_models import Comparison

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 14rem; } td.bar div { background: #4a7ab5; height: .7rem; min-width: 1px; }
h2 { font-size: 1.05rem; margin-top: 1.6rem; } code { font-size: .95em; }
"""


def comparison_page(found: Comparison) -> str:
    """Return the page: summary, recipe, layers with bars, ranks, and all tensors."""
    parts = [
        f"<p>A: <code>{_text(describe_model(found.a))}</code><br>B: <code>{_text(describe_model(found.b))}</code></p>",
        "<p>" + "<br>".join(map(_text, summary_lines(found))) + "</p>",
        "<p>Difference: ||B - A|| / ||A||. Angle: between A and B, in degrees.</p>",
        _table(
            "Recipe", ("key", "A", "B"), ((k, show_value(v[0]), show_value(v[1])) for k, v in found.recipe_keys.items())
        ),
        _table("Models", ("difference of inputs",), ((line,) for line in found.inputs)),
        _measured(
            "Layers",
            [(row.name, row.difference, row.angle, show_count(row.num_tensors, "tensor")) for row in found.layers],
        ),
        _table("Ranks that differ", ("tensor", "A", "B"), ((n, str(one), str(other)) for n, one, other in found.ranks)),
        _measured(
            "Tensors",
            [(row.name, row.difference, row.angle, f"{row.status}: {describe_shapes(row)}") for row in found.tensors],
        ),
    ]
    title = _text(f"{found.a.name} and {found.b.name}")
    head = f'<meta charset="utf-8">{PAGE_MARK}<title>{title}</title><style>{_STYLE}</style>'
    body = f"<h1>{title}</h1>\n" + "\n".join(filter(None, parts))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}\n</body></html>\n'


def _text(text: str) -> str:
    return escape(printable(text))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    if not body:
        return ""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    return f"<h2>{_text(title)}</h2><table><tr>{head}</tr>{body}</table>"


def _measured(title: str, rows: Sequence[tuple[str, float | None, float | None, str]]) -> str:
    """Return a table with a bar for each difference, the longest for the largest finite one."""
    largest = max((value for _, value, _, _ in rows if value is not None and value != float("inf")), default=0.0)
    lines: list[str] = []
    for name, difference, angle, note in rows:
        share = 0.0 if difference is None or not largest else min(1.0, difference / largest)
        lines.append(
            f'<tr><td><code>{_text(name)}</code></td><td class="n">{_number(difference)}</td>'
            f'<td class="bar"><div style="width:{share:.1%}"></div></td><td class="n">{_number(angle)}</td>'
            f"<td>{_text(note)}</td></tr>"
        )
    if not lines:
        return ""
    head = "<tr><th>name</th><th>difference</th><th></th><th>angle</th><th></th></tr>"
    return f"<h2>{_text(title)}</h2><table>{head}{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
