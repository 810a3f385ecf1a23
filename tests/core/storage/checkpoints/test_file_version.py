"""The state of files: every replacement and rewriting is noticed, and what does not change the content is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eigenmerge.core.errors import CheckpointError, ObjectChangedError
from eigenmerge.core.listing import FileVersion
from eigenmerge.core.storage.checkpoints.file_version import (
    observe_file,
    observe_small_file,
    open_unchanged,
    read_unchanged,
)
from eigenmerge.core.storage.object_hash import hash_object
from eigenmerge.core.storage.store import Store

Place = Callable[[str], Store]
BEFORE, AFTER = b"before", b"after!"


def move_over(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(AFTER)
    os.utime(other, (1, 1))
    other.replace(path)


def copy_over(path: Path) -> None:
    """As cp -p: the same inode and the old time."""
    with path.open("r+b") as file:
        file.write(AFTER)
    os.utime(path, (1, 1))


def retarget_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(AFTER)
    os.utime(other, (1, 1))
    path.unlink()
    path.symlink_to(other)


def truncate(path: Path) -> None:
    os.truncate(path, 3)
    os.utime(path, (1, 1))


CHANGES = [move_over, copy_over, retarget_link, truncate]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(BEFORE)
    os.utime(path, (1, 1))
    return path


def version_of(path: Path, digest: str = "") -> FileVersion:
    store = Store(str(path.parent))
    digest = digest or f"sha256:{hash_object(store, path.name, path.stat().st_size)}"
    return replace(observe_file(store, path.name), digest=digest)


def read(path: Path, version: FileVersion) -> bytes:
    with open_unchanged(path, version) as descriptor:
        return os.read(descriptor, 100)


@pytest.mark.parametrize("digest", ["", "samples:x"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file(path: Path, change: Callable[[Path], None], digest: str) -> None:
    version = version_of(path, digest)
    assert read(path, version) == BEFORE
    change(path)
    with pytest.raises(ObjectChangedError):
        read(path, version)


def test_a_change_while_it_is_read(path: Path) -> None:
    version = version_of(path)
    with pytest.raises(ObjectChangedError, match="while it was read"), open_unchanged(path, version):
        copy_over(path)


def test_equal_content_is_no_change_where_all_bytes_are_hashed(path: Path) -> None:
    complete, sampled = version_of(path), version_of(path, "samples:x")
    path.chmod(0o600)
    os.link(path, path.with_name("hard link"))
    assert read(path, complete) == BEFORE
    path.with_name("copy").write_bytes(BEFORE)
    path.with_name("copy").replace(path)
    assert read(path, complete) == BEFORE
    with pytest.raises(ObjectChangedError):  # samples do not show a change of few entries
        read(path, sampled)


def test_another_machine_may_have_a_copy(path: Path) -> None:
    elsewhere = replace(version_of(path), stat=(1, 2, 3), machine="another")
    assert read(path, elsewhere) == BEFORE
    copy_over(path)
    with pytest.raises(ObjectChangedError):
        read(path, elsewhere)


def test_a_file_system_that_numbers_files_anew(path: Path) -> None:
    version = version_of(path)
    assert version.stat is not None
    assert read(path, replace(version, stat=(-1, *version.stat[1:]))) == BEFORE


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ObjectChangedError, match="regular"), open_unchanged(tmp_path / "pipe", None):
        pass


def test_small_files(place: Place) -> None:
    store = place("m")
    store.write("tokenizer.json", BEFORE)
    uri, options = store.uri("tokenizer.json"), store._options
    version = observe_small_file(uri, options)
    assert read_unchanged(uri, version, options) == BEFORE
    store.write("tokenizer.json", AFTER)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has changed since the plan was made"):
        read_unchanged(uri, version, options)
    assert read_unchanged(uri, None, options) == AFTER
    store.delete(["tokenizer.json"])
    with pytest.raises(CheckpointError, match="run the merge again"):
        read_unchanged(uri, version, options)
