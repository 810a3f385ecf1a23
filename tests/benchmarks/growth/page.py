"""Write docs/growth.md and its plot from the points that growth.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLOT = "images/growth.svg"
TITLES = {"experts": "experts", "layers": "layers", "width": "input dimensions D2"}
_INTRO = """\
# Growth

Written by `tests/benchmarks/growth/growth.py --page docs/growth.md`; do not edit. Whole commands in processes of their
own: `eigenmerge merge --no-prefect --workers 1` from an empty store, bfloat16, files in the page cache. A Llama of
4 layers with 512 hidden dimensions (1408 inner ones) and 4 experts, of which one size changes in each column; the
models of the last column have 2 layers, and inner dimensions of 2.75 D2.

{machine}; {date}; eigenmerge {eigenmerge}, torch {torch}.
{note}

![CPU seconds and peak memory against experts, layers and width](images/growth.svg)

* Memory: {memory}.
  A merge holds one tensor, and of the experts one at a time.
* Time: linear in experts and in layers, after a start that does not depend on the model. A decomposition takes K^3 for
  a matrix of K columns, so a spectral merge grows with the cube of the width.
"""
#: Growth of the peak that the page still calls flat: allocator and page cache change it by a tenth between runs.
FLAT = 1.25


def write_page(page: Path, content: Mapping[str, Any]) -> None:
    """Write the page, and the plot into the folder images/ beside it.

    Parameters
    ----------
    content : what `growth.py --json` wrote
    """
    points: list[dict[str, Any]] = content["points"]
    facts = {"machine": content["machine"], "date": content["date"], **content["versions"]}
    note = content.get("note", "")
    text = _INTRO.format(**facts, note=note, memory=memory_claim(points))
    for axis, title in TITLES.items():
        text += "\n".join(["", f"## By {title}", "", *_table(points, axis, title), ""])
    page.write_text(text + kept_text(points) + lora_text(points))
    if plotted := [one for one in points if one["axis"] in TITLES]:
        write_plot(page.parent / PLOT, plotted)


def memory_claim(points: Sequence[Mapping[str, Any]]) -> str:
    """Say how the peak grows with experts and with layers, from the first to the last value of each."""
    parts: list[str] = []
    for axis in ("experts", "layers"):
        for method in _methods(points, axis):
            row = _row(points, axis, method)
            ratio = row[-1]["peak"] / row[0]["peak"]
            word = "flat" if ratio <= FLAT else "not flat"
            parts.append(f"{word} in {axis} for {method} ({row[0]['value']} to {row[-1]['value']}: x{ratio:.2f})")
    return ", ".join(parts)


def kept_text(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the section on a second filter over kept spectra."""
    found = {one["method"]: one for one in points if one["axis"] == "kept"}
    if not found:
        return ""
    start = found["linear"]["cpu"]
    first, second = (found[method]["cpu"] for method in ("swudi_a", "swudi"))
    return f"""
## Another filter over kept spectra

Two layers of 1024 hidden and 4096 inner dimensions, 4 experts: `swudi_a` takes {first:.1f} CPU seconds. Then `swudi`
takes {second:.1f}: it reads the spectra up to the last direction that it uses, multiplies once for each matrix, and
reads the base, but no expert's matrices. Linear averaging, which decomposes nothing, takes {start:.1f}.
"""


def lora_text(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the section on a hundred adapters."""
    found = [one for one in points if one["axis"] == "lora"]
    if not found:
        return ""
    one = found[0]
    taken = f"{one['cpu']:.0f} CPU seconds, {one['wall']:.0f} s, {one['peak'] / 1024:.2f} GB"
    return f"""
## A hundred adapters

{one["value"]} LoRA adapters of rank 16 on all seven projections of a model of 1.04 billion weights (16 layers, 2048
hidden and 8192 inner dimensions), {one["method"]}, two workers, spectra kept: {taken}.
"""


def write_plot(file: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """Draw CPU seconds and peak memory against each axis, as SVG with the same bytes for the same points."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 8})
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    rows = (("cpu", "CPU s"), ("peak", "peak memory, MB"))
    grid = figure.subplots(2, len(TITLES), squeeze=False)
    for column, (axis, title) in enumerate(TITLES.items()):
        for row, (figure_name, label) in enumerate(rows):
            plot = grid[row][column]
            for method in _methods(points, axis):
                line = _row(points, axis, method)
                plot.plot(
                    [one["value"] for one in line], [one[figure_name] for one in line], marker="o", ms=3, label=method
                )
            plot.set_xscale("log", base=2)
            plot.xaxis.set_major_formatter("{x:.0f}")
            plot.set_ylim(0, 1.1 * max(one[figure_name] for one in points if one["axis"] == axis))
            plot.grid(alpha=0.3)
            plot.set_xlabel(title)
            plot.set_ylabel(label if column == 0 else "")
    grid[0][0].legend(frameon=False)
    file.parent.mkdir(exist_ok=True)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})


def _table(points: Sequence[Mapping[str, Any]], axis: str, title: str) -> list[str]:
    methods = _methods(points, axis)
    heads = [f"{method}: {what}" for method in methods for what in ("CPU s", "wall s", "MB")]
    lines = [f"| {title} | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    by_value: dict[int, list[str]] = {}
    for method in methods:
        for one in _row(points, axis, method):
            cells = by_value.setdefault(one["value"], [])
            cells += [f"{one['cpu']:.1f}", f"{one['wall']:.1f}", f"{one['peak']:.0f}"]
    return lines + [f"| {value} | {' | '.join(cells)} |" for value, cells in sorted(by_value.items())]


def _methods(points: Sequence[Mapping[str, Any]], axis: str) -> list[str]:
    return sorted({one["method"] for one in points if one["axis"] == axis})


def _row(points: Sequence[Mapping[str, Any]], axis: str, method: str) -> list[Mapping[str, Any]]:
    found = [one for one in points if one["axis"] == axis and one["method"] == method]
    return sorted(found, key=lambda one: one["value"])
