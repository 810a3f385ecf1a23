"""Every kind of store passes the store contract: local disk, memory, two S3 servers, another fsspec file system."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage.store import Store, locate_object

from ...conftest import S3Root
from . import disk_file_system
from .store_contract import StoreContract


class TestLocalDisk(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(str(tmp_path / "store"))


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return Store(f"memory://{uuid.uuid4().hex}/prefix")


class TestS3(StoreContract):
    @pytest.fixture
    def store(self, s3_root: S3Root) -> Store:
        return Store(s3_root.uri, s3_root.storage_options)


class TestMoto(StoreContract):
    @pytest.fixture
    def store(self, moto_root: S3Root) -> Store:
        return Store(moto_root.uri, moto_root.storage_options)


class TestOtherFileSystem(StoreContract):
    exclusive_create = False  # fsspec's generic `pipe_file(mode="create")` checks first

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        disk_file_system.register()
        return Store(f"testdisk://{tmp_path}/store")


def test_equality_ignores_the_connection() -> None:
    first, second = (Store("memory://x", {"s3": {"key": "k"}}) for _ in range(2))
    assert first.backend is not second.backend
    assert first == second and hash(first) == hash(second)
    assert first != Store("memory://y") and first != "memory://x"


def test_one_store_can_copy_from_another_with_the_same_access() -> None:
    first = Store("s3://bucket/a", {"key": "k"})
    assert first.shares_access(Store("s3://other/b", {"key": "k"}))
    assert not first.shares_access(Store("s3://bucket/b", {"key": "other"}))
    assert not first.shares_access(Store("memory://b"))


@pytest.mark.parametrize("uri", ["s3://bucket", "memory://", "/"])
def test_an_address_without_an_object_name(uri: str) -> None:
    with pytest.raises(StoreError, match="not the address of an object"):
        locate_object(uri)
