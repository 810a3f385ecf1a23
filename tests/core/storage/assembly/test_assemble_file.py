"""Joining parts into files: the right bytes on every store, and few of them through this process."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eigenmerge.core.errors import ObjectNotFoundError, StoreError
from eigenmerge.core.storage.assembly import local_concatenate
from eigenmerge.core.storage.assembly.assemble_file import assemble_file
from eigenmerge.core.storage.assembly.s3_concatenate import SMALLEST_PART_BYTES
from eigenmerge.core.storage.store import Store

Place = Callable[[str], Store]
MIB = 2**20


def write_parts(store: Store, sizes: list[int]) -> tuple[list[tuple[str, int, int]], bytes]:
    """Write parts with a header of 100 bytes; return the ranges of their data, and the joined data."""
    ranges, data = [], b""
    for number, size in enumerate(sizes):
        content = (number + 1).to_bytes(1, "little") * 100 + os.urandom(min(size, 1000)) * (size // 1000 + 1)
        content = content[: 100 + size]
        store.write(f"parts/{number}", content)
        ranges.append((f"parts/{number}", 100, 100 + size))
        data += content[100:]
    return ranges, data


class TestContent:
    @pytest.mark.parametrize(
        "sizes",
        [[], [0], [1], [10, 20, 0, 5], [6 * MIB], [6 * MIB, 6 * MIB, 100], [100, 7 * MIB, MIB, MIB, 12 * MIB]],
        ids=str,
    )
    def test_header_and_ranges_in_order(self, place: Place, sizes: list[int]) -> None:
        store, out = place("store"), place("out")
        ranges, data = write_parts(store, sizes)
        written = assemble_file(out, "deep/model.safetensors", b"header", store, ranges)
        assert out.read("deep/model.safetensors") == b"header" + data
        assert written.num_bytes == 6 + len(data)
        if written.sha256 is not None:
            assert written.sha256 == hashlib.sha256(b"header" + data).hexdigest()
        assert [info.key for info in out.list()] == ["deep/model.safetensors"]

    def test_an_existing_file_is_replaced(self, place: Place) -> None:
        store, out = place("store"), place("out")
        ranges, data = write_parts(store, [10])
        out.write("x", b"something older and longer than that")
        assemble_file(out, "x", b"", store, ranges)
        assert out.read("x") == data

    def test_between_two_kinds_of_store(self, tmp_path: Path, place: Place) -> None:
        local = Store(str(tmp_path / "local"))
        for source, target in ((local, place("out")), (place("store"), local)):
            ranges, data = write_parts(source, [20 * MIB, 5])
            written = assemble_file(target, "joined", b"head", source, ranges)
            assert target.read("joined") == b"head" + data
            assert written.sha256 == hashlib.sha256(b"head" + data).hexdigest()

    def test_a_given_hash_is_returned(self, place: Place) -> None:
        ranges, _ = write_parts(place("store"), [10])
        if place("store").is_local:
            assert assemble_file(place("out"), "x", b"", place("store"), ranges, sha256="given").sha256 == "given"

    def test_a_part_that_is_too_short(self, place: Place) -> None:
        ranges, _ = write_parts(place("store"), [6 * MIB, 6 * MIB])
        ranges[1] = (ranges[1][0], 100, ranges[1][2] + 1)
        with pytest.raises(StoreError):
            assemble_file(place("out"), "x", b"", place("store"), ranges)
        assert list(place("out").list()) == []

    def test_a_part_that_is_missing(self, place: Place) -> None:
        ranges, _ = write_parts(place("store"), [6 * MIB])
        with pytest.raises(ObjectNotFoundError):
            assemble_file(place("out"), "x", b"", place("store"), [*ranges, ("parts/none", 0, 6 * MIB)])
        assert list(place("out").list()) == []


class TestBytesTransferred:
    def test_on_one_s3_server_the_server_copies(self, s3_root) -> None:
        store, out = (Store(f"{s3_root.uri}/{name}", s3_root.storage_options) for name in ("store", "out"))
        ranges, data = write_parts(store, [55 * MIB, 55 * MIB])
        written = assemble_file(out, "x", b"h" * 5000, store, ranges)
        assert written.sha256 is None
        assert written.bytes_transferred <= SMALLEST_PART_BYTES < 0.05 * len(data)
        assert hashlib.sha256(out.read("x")).digest() == hashlib.sha256(b"h" * 5000 + data).digest()

    def test_keys_with_characters_that_http_headers_cannot_contain(self, s3_root) -> None:
        store = Store(f"{s3_root.uri}/ä ö+%20", s3_root.storage_options)
        store.write("ü & ß.bin", bytes(7 * MIB))
        written = assemble_file(store, "joined ñ", bytes(5 * MIB), store, [("ü & ß.bin", 0, 7 * MIB)])
        assert written.bytes_transferred == 5 * MIB
        assert store.read("joined ñ") == bytes(12 * MIB)

    def test_on_a_second_s3_server(self, moto_root) -> None:
        store, out = (Store(f"{moto_root.uri}/{name}", moto_root.storage_options) for name in ("store", "out"))
        ranges, data = write_parts(store, [12 * MIB, 7 * MIB])
        assert assemble_file(out, "x", b"head", store, ranges).bytes_transferred <= SMALLEST_PART_BYTES
        assert out.read("x") == b"head" + data

    def test_on_one_disk_the_kernel_copies(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        ranges, _ = write_parts(store, [MIB, MIB])
        assert assemble_file(store, "x", b"head", store, ranges).bytes_transferred == 4

    @pytest.mark.parametrize("missing", [["copy_file_range"], ["copy_file_range", "sendfile"]])
    def test_files_that_the_kernel_cannot_copy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]
    ) -> None:
        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "another file system")

        for name in missing:
            monkeypatch.setattr(local_concatenate, f"_{name}", refuse)
        store = Store(str(tmp_path))
        ranges, data = write_parts(store, [MIB + 7, 3])
        written = assemble_file(store, "x", b"head", store, ranges)
        assert store.read("x") == b"head" + data
        assert written.bytes_transferred == (4 if missing == ["copy_file_range"] else 4 + len(data))

    def test_a_server_that_cannot_copy_ranges(self, s3_root, monkeypatch: pytest.MonkeyPatch) -> None:
        store, out = (Store(f"{s3_root.uri}/{name}", s3_root.storage_options) for name in ("store", "out"))
        ranges, data = write_parts(store, [6 * MIB, 6 * MIB])
        call = out.backend.call  # type: ignore[attr-defined]

        def without_copy(method: str, **arguments: object) -> dict[str, object]:
            if method == "upload_part_copy":
                raise OSError(errno.ENOSYS, "NotImplemented")
            return call(method, **arguments)

        monkeypatch.setattr(out.backend, "call", without_copy)
        written = assemble_file(out, "x", b"head", store, ranges)
        assert out.read("x") == b"head" + data
        assert written.bytes_transferred == written.num_bytes
