"""Multipart uploads against a real server: order of parts, copies, abort, and a completion whose response is lost."""

from __future__ import annotations

import os
from typing import Any

import pytest
from botocore.exceptions import ClientError

from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage.backends.s3_backend import S3Backend
from eigenmerge.core.storage.backends.s3_upload import MultipartUpload
from eigenmerge.core.storage.retries import RetryPolicy
from eigenmerge.core.storage.store import Store

from ....conftest import S3Root

MIB = 2**20


def start(store: Store, key: str) -> tuple[MultipartUpload, S3Backend]:
    backend = store.backend
    assert isinstance(backend, S3Backend)
    return MultipartUpload(backend.call, backend.object_key(key), store.request_runner(key)), backend


@pytest.fixture
def store(s3_root: S3Root) -> Store:
    return Store(s3_root.uri, s3_root.storage_options)


def test_parts_are_joined_by_number_not_by_time(store: Store) -> None:
    upload, _ = start(store, "x")
    first, second = os.urandom(5 * MIB), os.urandom(100)
    upload.send(2, second)
    upload.send(1, first)
    assert not store.exists("x")
    upload.complete(5 * MIB + 100)
    assert store.read("x") == first + second


def test_the_server_copies_ranges_of_other_objects(store: Store) -> None:
    content = os.urandom(12 * MIB)
    store.write("source", content)
    upload, backend = start(store, "x")
    upload.copy(1, backend.bucket, backend.object_key("source"), MIB, 7 * MIB)
    upload.send(2, b"end")
    upload.complete(6 * MIB + 3)
    assert store.read("x") == content[MIB : 7 * MIB] + b"end"


def test_an_aborted_upload_leaves_nothing(store: Store) -> None:
    upload, _ = start(store, "x")
    upload.send(1, bytes(100))
    upload.abort()
    upload.abort()  # a second call does nothing
    assert not store.exists("x")
    assert store.remove_abandoned() == 0


def test_a_copy_of_a_missing_object_names_both(store: Store) -> None:
    upload, backend = start(store, "x")
    with pytest.raises(StoreError, match=r"copying s3://.*/none to s3://.*/x: no such object"):
        upload.copy(1, backend.bucket, backend.object_key("none"), 0, 5 * MIB)


class TestLostCompletions:
    """The server completes the upload, but its response is lost. The retry then finds no upload, as on AWS."""

    @pytest.fixture
    def upload(self, store: Store) -> MultipartUpload:
        backend = store.backend
        assert isinstance(backend, S3Backend)
        attempts = 0

        def call(method: str, **arguments: Any) -> dict[str, Any]:
            nonlocal attempts
            if method != "complete_multipart_upload":
                return backend.call(method, **arguments)
            attempts += 1
            if attempts == 1:
                backend.call(method, **arguments)
                raise TimeoutError
            raise ClientError({"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}, method)  # type: ignore[typeddict-item]

        quick = Store(store.root_uri, store._options, retry=RetryPolicy(attempts=3, first_wait_seconds=0.01))
        upload = MultipartUpload(call, backend.object_key("x"), quick.request_runner("x"))
        upload.send(1, b"content")
        return upload

    def test_an_object_of_the_expected_size_is_accepted(self, store: Store, upload: MultipartUpload) -> None:
        upload.complete(7)
        assert store.read("x") == b"content"

    def test_another_size_is_an_error(self, upload: MultipartUpload) -> None:
        with pytest.raises(StoreError, match=r"completing s3://.*/x: the unfinished upload was removed"):
            upload.complete(8)
