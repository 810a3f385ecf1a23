"""Memory maps: the right bytes at any offset, and no effect on the file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch

from eigenmerge.core.errors import CorruptObjectError
from eigenmerge.core.storage.mapped_file import map_bytes, view_as

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, bytes]:
    content = os.urandom(3 * PAGE + 17)
    (tmp_path / "file").write_bytes(content)
    return tmp_path / "file", content


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (1, PAGE), (PAGE - 1, PAGE + 1), (PAGE, 2 * PAGE), (PAGE + 3, 3 * PAGE + 17)]
)
def test_any_range(file: tuple[Path, bytes], start: int, stop: int) -> None:
    path, content = file
    found = map_bytes(path, start, stop)
    assert found.dtype == torch.uint8
    assert found.numpy().tobytes() == content[start:stop]


def test_writing_to_the_tensor_does_not_change_the_file(file: tuple[Path, bytes]) -> None:
    path, content = file
    map_bytes(path, 0, 10).fill_(0)
    assert path.read_bytes() == content


def test_the_map_outlives_the_name_of_the_file(file: tuple[Path, bytes]) -> None:
    path, content = file
    found = map_bytes(path, 5, 500)
    path.unlink()
    assert found.numpy().tobytes() == content[5:500]


def test_a_file_that_is_too_short(file: tuple[Path, bytes]) -> None:
    path, content = file
    with pytest.raises(CorruptObjectError, match=rf"{len(content)} bytes, expected at least {len(content) + 1}"):
        map_bytes(path, 0, len(content) + 1)


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_view_as_any_alignment(file: tuple[Path, bytes], start: int) -> None:
    path, content = file
    mapped = map_bytes(path, start, start + 80)
    numbers = view_as(mapped, torch.int64)
    assert torch.equal(numbers, torch.frombuffer(bytearray(content[start : start + 80]), dtype=torch.int64))
    assert (numbers.data_ptr() == mapped.data_ptr()) == (start % 8 == 0), "copied only where it must be"
