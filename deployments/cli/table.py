"""Aligned columns of text for the tables that commands print."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.escaping import printable

_GAP = "  "


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return a header and one line per row, of printable characters.

    Parameters
    ----------
    width : number of characters of a line; only cells of the last column are shortened to fit, at their beginning. None
        shortens nothing, so that other programs can read the table
    """
    columns, rows = list(map(printable, columns)), [list(map(printable, row)) for row in rows]
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    room = None if width is None else max(width - sum(widths[:-1]) - len(_GAP) * (len(columns) - 1), len(columns[-1]))
    return [
        _GAP.join([*(cell.ljust(size) for cell, size in zip(row[:-1], widths, strict=False)), _shorten(row[-1], room)])
        for row in [columns, *rows]
    ]


def _shorten(text: str, room: int | None) -> str:
    if room is None or len(text) <= room:
        return text
    return f"…{text[len(text) - room + 1 :]}"
