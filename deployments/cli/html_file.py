"""Write an HTML page to a file of the user's choice, and never over a file that is no page of the same command."""

from __future__ import annotations

from pathlib import Path

_MARKED_BYTES = 500  # in which the mark of a page is


def check_html_place(path: Path, mark: str, command: str) -> None:
    """Check that a page can be written, before anything is computed.

    Parameters
    ----------
    mark : text at the beginning of every page of the command

    Raises
    ------
    DestinationError : no such directory, or a file that is no page of this command
    """
    from ...core.errors import DestinationError

    if not path.parent.is_dir():
        raise DestinationError(f"--html {path}: the directory {path.parent} does not exist")
    if path.exists() and (not path.is_file() or mark.encode() not in path.read_bytes()[:_MARKED_BYTES]):
        raise DestinationError(f"--html {path}: exists, and is no page of `eigenmerge {command}`; choose another name")


def write_html(path: Path, page: str) -> None:
    """Write a page, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
