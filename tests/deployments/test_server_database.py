"""A new home gets a copy of a migrated database; every other database is left to Prefect."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

from eigenmerge.deployments.server_database import cached_databases, database_file, prepared_database


def write(file: Path, revision: str, rows: int = 0) -> None:
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        database.execute("CREATE TABLE flow_run (id TEXT)")
        database.executemany("INSERT INTO flow_run VALUES (?)", [(str(row),) for row in range(rows)])
    database.close()


def num_runs(file: Path) -> int:
    with sqlite3.connect(file) as database:
        (count,) = database.execute("SELECT COUNT(*) FROM flow_run").fetchone()
    database.close()
    return int(count)


def test_the_first_database_is_kept_and_new_homes_get_a_copy(tmp_path: Path) -> None:
    first, second, cached = tmp_path / "a" / "prefect.db", tmp_path / "b" / "prefect.db", tmp_path / "c" / "x.db"
    first.parent.mkdir()
    with prepared_database(first, [cached]) as is_ready:
        assert not is_ready and not first.exists()
        write(first, "head")
    assert [path.name for path in cached.parent.iterdir()] == ["x.db"]
    with prepared_database(second, [cached]) as is_ready:
        assert is_ready and num_runs(second) == 0
    assert [path.name for path in second.parent.iterdir()] == ["prefect.db"]


def test_a_database_with_runs_is_not_replaced_and_not_kept(tmp_path: Path) -> None:
    file, cached = tmp_path / "prefect.db", tmp_path / "cache" / "x.db"
    write(file, "head", rows=3)
    with prepared_database(file, [cached]) as is_ready:
        assert not is_ready
    assert not cached.exists()
    cached.parent.mkdir()
    write(cached, "head")
    with prepared_database(file, [cached]) as is_ready:
        assert is_ready
    assert num_runs(file) == 3


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + bytes(4096)])
def test_a_damaged_copy_leaves_the_work_to_prefect(tmp_path: Path, content: bytes) -> None:
    file, cached = tmp_path / "prefect.db", tmp_path / "x.db"
    cached.write_bytes(content)
    with prepared_database(file, [cached]) as is_ready:
        assert not is_ready and not file.exists()


def test_a_database_of_another_version_is_migrated(tmp_path: Path) -> None:
    file, cached = tmp_path / "prefect.db", tmp_path / "x.db"
    write(file, "older")
    write(cached, "head")
    with prepared_database(file, [cached]) as is_ready:
        assert not is_ready


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "prefect.db"
    (tmp_path / "file").write_text("")
    with prepared_database(file, [tmp_path / "file" / "x.db"]):
        write(file, "head")
    with prepared_database(None, [tmp_path / "y.db"]) as is_ready:
        assert not is_ready


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert database_file("sqlite+aiosqlite:////home/u/.prefect/prefect.db") == Path("/home/u/.prefect/prefect.db")
    for url in ("", "sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite:///file::memory:?cache=shared", "postgresql://h"):
        assert database_file(url) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert [place.parent for place in cached_databases()] == [
        Path(sys.prefix) / "share" / "eigenmerge-prefect",
        Path("/caches/eigenmerge-prefect"),
    ]
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert [place.parent for place in cached_databases()] == [Path("/caches/eigenmerge-prefect")]


def test_the_first_place_that_can_be_written_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "x.db", tmp_path / "a" / "x.db", tmp_path / "b" / "x.db"]
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    with prepared_database(first, places):
        write(first, "head")
    assert [place.exists() for place in places] == [False, True, False]
    with prepared_database(second, places[::-1]) as is_ready:
        assert is_ready, "a copy in any of the places is used"
