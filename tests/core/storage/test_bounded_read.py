"""Objects that are larger than any of their kind are refused before they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import CorruptObjectError, ObjectNotFoundError
from eigenmerge.core.storage.bounded_read import read_bounded
from eigenmerge.core.storage.store import Store

from ...conftest import S3Root


def check(store: Store) -> None:
    for size in (0, 1, 9, 10):
        store.write("a/object", b"x" * size)
        assert read_bounded(store, "a/object", 10) == b"x" * size
    store.write("a/object", b"x" * 11)
    with pytest.raises(CorruptObjectError, match="object: 11 bytes, expected at most 10"):
        read_bounded(store, "a/object", 10)
    with pytest.raises(ObjectNotFoundError):
        read_bounded(store, "a/other", 10)


def test_on_a_disk(tmp_path: Path) -> None:
    check(Store(str(tmp_path)))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**38)  # sparse: reading it would fail
    with pytest.raises(CorruptObjectError, match="274877906944 bytes"):
        read_bounded(Store(str(tmp_path)), "huge", 10)


def test_in_memory() -> None:
    check(Store("memory://bounded-read"))


def test_on_s3(s3_root: S3Root) -> None:
    check(Store(s3_root.uri, s3_root.storage_options))
