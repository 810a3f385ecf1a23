"""A store is probed for what a run needs hours later: writing, listing and deleting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eigenmerge.core.errors import StoreError
from eigenmerge.core.storage.store import Store

from ...conftest import S3Root
from ...faulty_proxy import FaultyProxy

Denied = Callable[[str, str], bool]


@pytest.mark.parametrize(
    ("denied", "says"),
    [
        (lambda method, path: method == "PUT", "permission denied"),
        (lambda method, path: method == "POST" and "delete" in path, "cannot be deleted"),
        (lambda method, path: method == "GET" and "list-type" in path, "permission denied"),
    ],
    ids=["put", "delete", "list"],
)
def test_a_missing_permission_is_found_at_the_beginning(
    faulty_s3: tuple[FaultyProxy, S3Root], denied: Denied, says: str
) -> None:
    proxy, root = faulty_s3
    proxy.faults.decide = lambda method, path: "denied" if denied(method, path) else None
    with pytest.raises(StoreError, match=says):
        Store(root.uri, root.storage_options).with_probed_writes()


def test_the_probe_leaves_nothing(s3_root: S3Root, tmp_path: Path) -> None:
    for store in (Store(s3_root.uri, s3_root.storage_options), Store(str(tmp_path / "store"))):
        store.with_probed_writes()
        assert not list(store.list(""))


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="expected a directory, found a file"):
        Store(str(tmp_path / "file" / "store")).with_probed_writes()
    with pytest.raises(StoreError, match="cannot be created"):
        Store("/proc/no-such/store").with_probed_writes()
