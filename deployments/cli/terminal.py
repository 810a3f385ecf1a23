"""Print on the terminal. Every command prints through these functions, which escape what a model could have named."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

from ...core.escaping import printable
from .status import clear_status, set_status

if TYPE_CHECKING:
    import typer


def show(*lines: str) -> None:
    """Print lines on standard output, with everything that is not printable as escapes."""
    set_status("")  # a result follows
    _write(sys.stdout, *lines)


def wrapped(label: str, text: str) -> list[str]:
    """Return a label and a text as lines of the terminal's width, the following ones indented; one line in a pipe."""
    if not sys.stdout.isatty():
        return [label + text]
    width = shutil.get_terminal_size().columns
    indent = " " * len(label)
    return textwrap.wrap(
        label + text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [label]


def show_error(line: str) -> None:
    """Print a line of this program on standard error."""
    _write(sys.stderr, f"eigenmerge: {line}")


def show_json(value: object, *, indent: int | None = 1) -> None:
    """Print one JSON value on standard output, in ASCII."""
    show(*json.dumps(value, indent=indent).split("\n"))


def show_help(context: typer.Context) -> None:
    """Print the help of a command, which is text of this package and may contain colors."""
    clear_status()
    print(context.get_help())


def _write(stream: TextIO, *lines: str) -> None:
    clear_status()
    encoding = stream.encoding or "utf-8"
    for line in lines:
        text = printable(line)
        # A terminal that cannot show a letter gets its escape instead of an error.
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
