"""Fixtures for all tests of core."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from eigenmerge.core.storage.store import Store


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Store]:
    """Return a function that makes an empty store of a given name, on one of three kinds of storage."""
    if request.param == "local":
        return lambda name: Store(str(tmp_path / name))
    if request.param == "memory":
        root = uuid.uuid4().hex
        return lambda name: Store(f"memory://{root}/{name}")
    s3 = request.getfixturevalue("s3_root")
    return lambda name: Store(f"{s3.uri}/{name}", s3.storage_options)
