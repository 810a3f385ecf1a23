"""Writing one S3 object in chunks: one request if small, equal parts if not, bounded memory, errors raised early."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage.backends import s3_writer
from eigenmerge.core.storage.backends.s3_backend import S3Backend
from eigenmerge.core.storage.backends.s3_writer import S3Writer
from eigenmerge.core.storage.store import Store

from ....conftest import S3Root

MIB = 2**20


class Recorded:
    """A writer of the object "x" with the names of its requests and the sizes of their bodies."""

    def __init__(self, store: Store, fail_at: str | None = None) -> None:
        backend = store.backend
        assert isinstance(backend, S3Backend)
        self.methods: Counter[str] = Counter()
        self.sizes: list[int] = []

        def call(method: str, **arguments: Any) -> dict[str, Any]:
            self.methods[method] += 1
            if "Body" in arguments:
                self.sizes.append(len(arguments["Body"]))
            if method == fail_at:
                raise PermissionError("no")
            return backend.call(method, **arguments)

        self.writer = S3Writer(call, backend.object_key("x"), store.request_runner("x"))


@pytest.fixture
def store(s3_root: S3Root) -> Store:
    return Store(s3_root.uri, s3_root.storage_options)


@pytest.mark.parametrize("size", [0, 1, 16 * MIB - 1])
def test_a_small_object_is_one_request(store: Store, size: int) -> None:
    recorded, content = Recorded(store), os.urandom(size)
    recorded.writer.write(content)
    assert not recorded.methods
    recorded.writer.commit()
    assert recorded.methods == {"put_object": 1}
    assert store.read("x") == content


@pytest.mark.parametrize("chunk_bytes", [7 * MIB, 33 * MIB, 100 * MIB])
def test_a_large_object_goes_in_equal_parts(store: Store, chunk_bytes: int) -> None:
    recorded, content = Recorded(store), os.urandom(MIB) * 50
    for start in range(0, len(content), chunk_bytes):
        recorded.writer.write(content[start : start + chunk_bytes])
    assert not store.exists("x")
    recorded.writer.commit()
    assert sorted(recorded.sizes) == [2 * MIB, 16 * MIB, 16 * MIB, 16 * MIB]
    assert store.read("x") == content


def test_a_failed_part_stops_the_writer_early(store: Store) -> None:
    recorded = Recorded(store, fail_at="upload_part")
    with pytest.raises(StoreError, match=r"writing part 1 of .*permission denied"):
        for _ in range(20):
            recorded.writer.write(bytes(16 * MIB))
    assert recorded.methods["upload_part"] <= 6
    recorded.writer.abort()
    assert recorded.methods["abort_multipart_upload"] == 1
    assert store.remove_abandoned() == 0


def test_abort_before_the_first_part(store: Store) -> None:
    recorded = Recorded(store)
    recorded.writer.write(b"content")
    recorded.writer.abort()
    assert not recorded.methods
    assert not store.exists("x")


def test_five_tebibytes_have_fewer_than_ten_thousand_parts() -> None:
    sent, number = 0, 0
    while sent < s3_writer.LARGEST_OBJECT_BYTES:
        sent += s3_writer.part_bytes(sent)
        number += 1
    assert number < s3_writer.MOST_PARTS and s3_writer.part_bytes(sent) < 5 * 2**30
