"""Joining local files: by the kernel where it can, else through this process, with the same bytes and hash."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.storage.assembly import local_concatenate
from eigenmerge.core.storage.assembly.local_concatenate import FileRange, concatenate_files

MIB = 2**20


def write_sources(root: Path, sizes: list[int]) -> tuple[list[FileRange], bytes]:
    """Write files, and return a range of each, which skips 7 bytes, and the content of the ranges."""
    ranges: list[FileRange] = []
    data = b""
    for number, size in enumerate(sizes):
        content = os.urandom(7 + size)
        (root / str(number)).write_bytes(content)
        ranges.append((root / str(number), 7, 7 + size))
        data += content[7:]
    return ranges, data


@pytest.mark.parametrize("sizes", [[], [0], [1], [10, 0, 3 * MIB + 1, 5]], ids=str)
def test_content_and_hash(tmp_path: Path, sizes: list[int]) -> None:
    ranges, data = write_sources(tmp_path, sizes)
    sha256, transferred = concatenate_files(tmp_path / "out" / "x", b"head", ranges, hashed=True)
    assert (tmp_path / "out" / "x").read_bytes() == b"head" + data
    assert sha256 == hashlib.sha256(b"head" + data).hexdigest()
    assert transferred == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    assert concatenate_files(tmp_path / "y", b"", ranges, hashed=False)[0] is None


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL])
def test_where_the_kernel_cannot_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    for name in ("_copy_file_range", "_sendfile"):
        monkeypatch.setattr(local_concatenate, name, refuse)
    ranges, data = write_sources(tmp_path, [17 * MIB, 5])
    sha256, transferred = concatenate_files(tmp_path / "x", b"head", ranges, hashed=True)
    assert (tmp_path / "x").read_bytes() == b"head" + data
    assert sha256 == hashlib.sha256(b"head" + data).hexdigest()
    assert transferred == 4 + len(data)


def test_other_errors_of_the_kernel_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "disk error")

    monkeypatch.setattr(local_concatenate, "_copy_file_range", fail)
    ranges, _ = write_sources(tmp_path, [10])
    with pytest.raises(OSError, match="disk error"):
        concatenate_files(tmp_path / "out" / "x", b"head", ranges, hashed=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize("hashed", [True, False])
def test_a_short_source_leaves_the_old_file(tmp_path: Path, hashed: bool) -> None:
    ranges, _ = write_sources(tmp_path, [10, 10])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_bytes(b"old")
    path, start, stop = ranges[1]
    with pytest.raises(CorruptObjectError, match="17 bytes, expected at least 18"):
        concatenate_files(tmp_path / "out" / "x", b"head", [ranges[0], (path, start, stop + 1)], hashed=hashed)
    assert (tmp_path / "out" / "x").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
