"""Suggest an existing local path for one that does not exist."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path


def near_path(path: str | Path) -> str:
    """Return a hint to append to a message: "; did you mean /models/math?", or the last directory that exists.

    Examples: "" where nothing is known, "; /models exists and has no 'mth'".
    """
    try:
        wanted = Path(path).expanduser().absolute()
        existing = next(parent for parent in wanted.parents if parent.is_dir())
        missing = wanted.relative_to(existing).parts
        names = sorted(entry.name for entry in existing.iterdir() if not entry.name.startswith("."))
    except (OSError, ValueError, StopIteration):
        return ""
    near = get_close_matches(missing[0], names, n=1, cutoff=0.6)
    if near:
        found = existing.joinpath(near[0], *missing[1:])
        return f"; did you mean {found if found.exists() else existing / near[0]}?"
    return f"; {existing} exists, and has no {missing[0]!r}"
