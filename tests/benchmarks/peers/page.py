"""Write docs/benchmarks.md from the stored figures alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from .ratios import ratio, second_run_ratio
from .results import Results, Row

_INTRO = """\
# Benchmarks

Written by `make bench` from `tests/benchmarks/peers/figures.json`; do not edit. A figure is the median of its runs,
with the smallest and the largest in brackets. The contenders of a row took turns. GB are 10^9 bytes.

{machine}; {dates}; {versions}; files in the page cache."""
_MERGES = """\
## Whole merges

Both commands from start to exit with the same recipe, models in bfloat16, an empty store. CPU seconds include those of
Prefect's server; peak memory is that of the largest process. A fresh home has no cache and no database of Prefect; the
virtual environment has merged before, and keeps a migrated database since then (3 CPU seconds, once).
"""
_LAYERS = """\
## One layer against the published algorithm

SWUDI (`exp_time` 1300, `rank_ratio` 0.65) of one weight, 5 experts, float32, one thread, each run in a process of its
own. The published algorithm stacks the experts in one tensor. Memory is the peak beyond the inputs.
"""
_KEPT = """\
## Another filter over kept spectra

`swudi_a` with `spectra: full` from an empty store, then `swudi` on the same store; whole commands with `--no-prefect`.
The start is a linear merge of the model of 7 MB. The last columns say how many times less the second command takes, the
start of both not counted.
"""
_READING = """\
## Reading

The experts of one weight: 4 full ones of 32 MiB, or 64 adapters of rank 16 with two factors of 128 KiB each. The S3
test server and the proxy that delays its answers are single processes on the same machine, and bound the rates.
`python -m tests.benchmarks.read_speed` measures them alone.
"""
_PLANNING = """\
## Planning

`eigenmerge plan` of a mixture of 671 billion weights in float8 with block scales, SWUDI-A, from headers with the true
names, shapes and number of files.
"""
_GB = 1e9
_MB = 1e6


def page(results: Results) -> str:
    """Return the page: one section for each group that was measured."""
    dates = sorted({row.date for row in results.rows})
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    intro = _INTRO.format(machine=results.machine, dates=" to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])),
                          versions=versions)  # fmt: skip
    sections = [intro]
    for group, section in _SECTIONS.items():
        rows = [row for row in results.rows if row.group == group]
        if rows:
            sections.append("\n".join(section(rows)))
    return "\n\n".join(sections) + "\n"


def _merges(rows: Sequence[Row]) -> Iterator[str]:
    yield _MERGES
    figures = (("CPU s", "cpu", 1, 1.0), ("wall s", "wall", 1, 1.0), ("GB", "memory", 2, _GB))
    yield from _comparison(rows, "merge", "mergekit", figures)


def _layers(rows: Sequence[Row]) -> Iterator[str]:
    yield _LAYERS
    yield from _comparison(rows, "out x in", "published", (("CPU s", "cpu", 2, 1.0), ("GB", "memory", 3, _GB)))


def _comparison(
    rows: Sequence[Row], title: str, other: str, figures: Sequence[tuple[str, str, int, float]]
) -> Iterator[str]:
    """Yield a table of ours, the other's and their ratio.

    Parameters
    ----------
    figures : of each its head, its name in the rows, the digits that are shown, and its unit
    """
    heads = [f"{head}: {who}" for head, *_ in figures for who in ("ours", other, "ratio")]
    lines: list[list[str]] = []
    for row in rows:
        cells = [row.label]
        for _, figure, digits, unit in figures:
            cells += [show(row, who, figure, digits, unit) for who in ("eigenmerge", other)]
            cells.append(_number(ratio(row, figure, other=other), 2))
        lines.append(cells)
    yield from _table([title, *heads], lines)


def _kept(rows: Sequence[Row]) -> Iterator[str]:
    yield _KEPT
    heads = [f"{who}: {what}" for who in ("swudi_a", "swudi", "start") for what in ("CPU s", "wall s")]
    lines: list[list[str]] = []
    for row in rows:
        cells = [row.label]
        for who in ("first", "second", "start"):
            cells += [show(row, who, figure, 1) for figure in ("cpu", "wall")]
        for figure in ("cpu", "wall"):
            found = second_run_ratio(row, figure)
            cells.append(_number(None if found is None else 1 / found, 1))
        lines.append(cells)
    yield from _table(["model", *heads, "times less: CPU", "wall"], lines)
    yield from ("", "Size of the model and of its spectra in the store, GB:", "")
    sizes = [
        [
            row.label,
            show(row, "first", "weights", 2, _GB),
            show(row, "first", "spectra", 2, _GB),
            show(row, "top", "spectra", 2, _GB),
        ]
        for row in rows
    ]
    yield from _table(["model", "weights", "`spectra: full`", "`spectra: top`"], sizes)


def _reading(rows: Sequence[Row]) -> Iterator[str]:
    yield _READING
    lines = [
        [
            row.label,
            show(row, "eigenmerge", "bytes", 0, _MB),
            show(row, "eigenmerge", "requests", 0) if row.median("eigenmerge", "requests") else "-",
            show(row, "eigenmerge", "cpu", 3),
            show(row, "eigenmerge", "wall", 3),
        ]
        for row in rows
    ]
    yield from _table(["what, from where", "MB/s", "requests/s", "CPU s", "wall s"], lines)


def _planning(rows: Sequence[Row]) -> Iterator[str]:
    yield _PLANNING
    figures = (("tensors", 0, 1.0), ("cpu", 1, 1.0), ("wall", 1, 1.0), ("memory", 2, _GB))
    lines = [[row.label, *(show(row, "eigenmerge", *figure) for figure in figures)] for row in rows]
    yield from _table(["models", "tensors of each", "CPU s", "wall s", "GB"], lines)


_SECTIONS: dict[str, Callable[[Sequence[Row]], Iterator[str]]] = {
    "merges": _merges,
    "layers": _layers,
    "kept": _kept,
    "reading": _reading,
    "planning": _planning,
}


def show(row: Row, contender: str, figure: str, digits: int, unit: float = 1.0) -> str:
    """Return the median and the spread of a figure, in `unit`; "-" where it was not measured."""
    values = [value / unit for value in row.values(contender, figure)]
    if not values:
        return "-"
    low, middle, high = (_number(one, digits) for one in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low}-{high})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "--:|" * (len(heads) - 1)
    for cells in lines:
        yield "| " + " | ".join(cells) + " |"
