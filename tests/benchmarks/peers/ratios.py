"""Ratios of what was measured: ours to another tool, or a second run to the first; and which of them became worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .results import Results, Row

#: Ratio to the stored one above which a check fails.
WORSE = 1.2
_WORDS = {"cpu": "CPU", "wall": "wall", "memory": "memory"}
#: By group: the other contender, its name in a sentence, and the figures that are compared.
_OTHERS = {
    "merges": ("mergekit", "mergekit's", ("cpu", "wall", "memory")),
    "layers": ("published", "the published algorithm's", ("cpu", "memory")),
}


def ratio(row: Row, figure: str, ours: str = "eigenmerge", other: str = "mergekit") -> float | None:
    """Return the ratio of two medians; None where one was not measured."""
    first, second = row.median(ours, figure), row.median(other, figure)
    return None if first is None or not second else first / second


def second_run_ratio(row: Row, figure: str = "cpu") -> float | None:
    """Return what another filter over kept spectra takes of the first run, the start of both not counted."""
    start, first, second = (row.median(name, figure) for name in ("start", "first", "second"))
    if start is None or first is None or second is None or not start < min(first, second):
        return None
    return (second - start) / (first - start)


def ratios(row: Row) -> Iterator[tuple[str, str, float]]:
    """Yield what is compared, with what, and the ratio, for all ratios of a row that can be computed."""
    if row.group == "kept":
        found = second_run_ratio(row)
        if found is not None:
            yield "CPU without the start", "the first run's", found
    elif row.group in _OTHERS:
        other, name, figures = _OTHERS[row.group]
        for figure in figures:
            found = ratio(row, figure, other=other)
            if found is not None:
                yield _WORDS[figure], name, found


def worse_ratios(rows: Sequence[Row], reference: Results) -> list[str]:
    """Return a line for each ratio that is more than `WORSE` times that of the reference."""
    before = {(row.group, row.label, what): found for row in reference.rows for what, _, found in ratios(row)}
    lines: list[str] = []
    for row in rows:
        for what, other, now in ratios(row):
            then = before.get((row.group, row.label, what))
            if then is not None and now > WORSE * then:
                lines.append(f"{row.group}, {row.label}: {what} is {now:.3g} of {other}, and was {then:.3g}")
    return lines


def not_compared(rows: Sequence[Row], reference: Results) -> list[str]:
    """Return a line for each of the rows of which no ratio could be compared."""
    known = {(row.group, row.label, what) for row in reference.rows for what, _, _ in ratios(row)}
    return [
        f"{row.group}, {row.label}: nothing to compare with"
        for row in rows
        if not any((row.group, row.label, what) in known for what, _, _ in ratios(row))
    ]
