"""Aligned columns of text for the tables that commands print."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

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


def terminal_width() -> int | None:
    """Return the columns of the terminal on standard output; None in a pipe, whose reader gets whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped_lines(lines: Iterable[str], width: int | None, indent: int = 4) -> list[str]:
    """Return lines broken between words, so that a terminal of `width` columns cuts no number; None breaks nothing.

    Parameters
    ----------
    indent : of the rest of a broken line, more than the line itself
    """
    if width is None:
        return list(lines)
    found: list[str] = []
    for line in map(printable, lines):
        start = line[: len(line) - len(line.lstrip())]
        rest = " " * (len(start) + indent)
        found += textwrap.wrap(
            line,
            width,
            subsequent_indent=rest,
            drop_whitespace=True,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return found
