"""Prefect's database of a new home without its migrations, which take ten seconds: a copy of one that was migrated.

A database that was created from nothing by this version of Prefect is copied before any run is in it: into the virtual
environment, or to the user's cache where there is none or it is read-only. A new home gets a copy of it. A database at
the version of that copy is not compared with Prefect's migrations either, which takes half a second. Whatever is
unknown or fails leaves the work to Prefect.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import tempfile
from collections.abc import Generator, Sequence
from importlib.metadata import version
from pathlib import Path

_SUFFIXES = ("", "-wal", "-journal")


def cached_databases() -> list[Path]:
    """Return the places of the migrated, empty database of the installed version of Prefect, in order of preference."""
    name = f"prefect-{version('prefect')}.db"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    places = [cache / "eigenmerge-prefect" / name]
    if sys.prefix != sys.base_prefix:  # a virtual environment, which belongs to whoever installs into it
        places.insert(0, Path(sys.prefix) / "share" / "eigenmerge-prefect" / name)
    return places


def database_file(url: str) -> Path | None:
    """Return the file of an SQLite database by its SQLAlchemy address; None for others."""
    scheme, separator, path = url.partition(":///")
    if scheme != "sqlite+aiosqlite" or not separator or not path or path.startswith(":") or "?" in path:
        return None
    return Path(path)


@contextlib.contextmanager
def prepared_database(file: Path | None, places: Sequence[Path]) -> Generator[bool]:
    """Create the database from a cached one if there is none, and yield whether it needs no migrations.

    After the block, in which Prefect migrates it otherwise, a new one is kept in the first place that can be written.

    Parameters
    ----------
    file : of the database; None: not one on this disk, which is left to Prefect
    places : of cached databases
    """
    if file is None:
        yield False
        return
    is_new = not any(Path(f"{file}{suffix}").exists() for suffix in _SUFFIXES)
    cached = next((place for place in places if _revision(place) is not None), None)
    if is_new and cached is not None:
        with contextlib.suppress(OSError):
            _copy_if_absent(cached, file)
    yield cached is not None and _revision(file) == _revision(cached)
    if is_new and cached is None:
        _keep_in_first(file, places)


def _revision(file: Path) -> str | None:
    """Return the version of a database's tables; None if it has none or cannot be read."""
    if not file.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error:
        return None
    return str(rows[0][0]) if len(rows) == 1 else None


def _copy_if_absent(cached: Path, file: Path) -> None:
    """Copy the cached database, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".prefect-") as copy:
        copy.write(cached.read_bytes())
        copy.flush()
        with contextlib.suppress(FileExistsError):
            os.link(copy.name, file)


def _keep_in_first(file: Path, places: Sequence[Path]) -> None:
    """Copy a database to the first place that can be written, if there is one."""
    for place in places:
        try:
            _keep(file, place)
        except (OSError, sqlite3.Error):
            continue
        return


def _keep(file: Path, cached: Path) -> None:
    """Copy a database to the cache, with what its write-ahead log has."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
        copy = Path(folder) / cached.name
        with (
            contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
        copy.replace(cached)
