"""Other fsspec file systems: files that appear complete or not at all, spooled writes, exclusive creation."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from eigenmerge.core.errors import CorruptObjectError, StoreError
from eigenmerge.core.storage.backends import fsspec_backend
from eigenmerge.core.storage.retries import RetryPolicy
from eigenmerge.core.storage.store import Store

from .. import disk_file_system
from ..disk_file_system import DiskFileSystem

QUICK = RetryPolicy(attempts=2, first_wait_seconds=0.001)


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    disk_file_system.register()
    return Store(f"testdisk://{tmp_path}/store", retry=QUICK)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


class TestFilesThatGrowUnderTheirName:
    def test_objects_are_written_to_a_temporary_name_first(
        self, disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[str]] = []
        original = DiskFileSystem.mv

        def observed(self: DiskFileSystem, *arguments: object, **options: object) -> object:
            seen.append(names(tmp_path))
            assert list(disk.list()) == [], "a temporary file is not an object"
            return original(self, *arguments, **options)

        monkeypatch.setattr(DiskFileSystem, "mv", observed)
        disk.write("a/x", b"content")
        assert len(seen) == 1 and ".partial-" in seen[0][0]
        assert names(tmp_path) == ["x"]
        assert disk.read("a/x") == b"content"

    def test_a_failed_write_leaves_nothing(self, disk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise PermissionError("read-only")

        monkeypatch.setattr(DiskFileSystem, "mv", fail)
        with pytest.raises(StoreError, match="permission denied"):
            disk.write("x", b"content")
        assert names(tmp_path) == []

    def test_reading_listing_and_deleting(self, disk: Store) -> None:
        for key in ("b", "a/x", "a/deep/y"):
            disk.write(key, key.encode())
        assert [info.key for info in disk.list()] == ["a/deep/y", "a/x", "b"]
        assert [info.key for info in disk.list("a", recursive=False)] == ["a/x"]
        assert disk.info("a/x").size == 3 and disk.info("a/x").modified > 0
        assert disk.read_range("a/deep/y", 2, 6) == b"deep"
        assert disk.read_head("b", 100) == (b"b", 1)
        with pytest.raises(CorruptObjectError, match="1 bytes, expected at least 5"):
            disk.read_range("b", 0, 5)
        disk.delete(["b", "none"])
        assert not disk.exists("b")

    def test_create_is_exclusive(self, disk: Store) -> None:
        assert disk.create("claim", b"first")
        assert not disk.create("claim", b"second")
        assert disk.read("claim") == b"first"


class TestSpooledWrites:
    @pytest.fixture(params=["memory", "testdisk"])
    def store(self, request: pytest.FixtureRequest, disk: Store) -> Store:
        return disk if request.param == "testdisk" else Store(f"memory://{uuid.uuid4().hex}")

    def test_beyond_the_limit_the_data_goes_through_a_local_file(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "spool").mkdir()
        monkeypatch.setattr(fsspec_backend, "_SPOOL_BYTES", 1000)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
        content = os.urandom(5000)
        with store.open_write("x") as writer:
            writer.write(content[:900])
            assert names(tmp_path / "spool") == []
            writer.write(content[900:2000])
            writer.write(content[2000:])
            assert len(names(tmp_path / "spool")) == 1
            assert not store.exists("x")
        assert store.read("x") == content
        assert names(tmp_path / "spool") == []

    def test_an_exception_discards_the_spooled_data(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "spool").mkdir()
        monkeypatch.setattr(fsspec_backend, "_SPOOL_BYTES", 10)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
        with pytest.raises(ZeroDivisionError), store.open_write("x") as writer:
            writer.write(bytes(100))
            raise ZeroDivisionError
        assert names(tmp_path / "spool") == []
        assert list(store.list()) == []


def test_an_unknown_protocol() -> None:
    with pytest.raises(StoreError, match="nosuch:// is not a protocol of fsspec"):
        Store("nosuch://x").read("y")


@pytest.mark.parametrize(
    ("found", "version"),
    [
        ({"ETag": '"abc"'}, "abc"),
        ({"md5Hash": "m", "updated": "later"}, "m"),
        ({"blob_id": "pointer", "lfs": {"sha256": "content"}}, "content"),
        ({"mtime": 1.5}, "1.5"),
        ({}, ""),
    ],
)
def test_the_version_prefers_a_hash_of_the_content(found: dict[str, object], version: str) -> None:
    assert fsspec_backend._version(found) == version
