"""Registers the protocol `synthetic://` in this process and, by `synthetic_environment`, in processes of the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fsspec
import pytest

PLUGIN = Path(__file__).parent / "plugin"

if str(PLUGIN) not in sys.path:
    sys.path.insert(0, str(PLUGIN))
# In other processes the entry point in this folder does this, because PYTHONPATH names it before fsspec is imported.
fsspec.register_implementation("synthetic", "synthetic_checkpoint.filesystem.SyntheticFileSystem", clobber=True)


@pytest.fixture
def synthetic_environment() -> dict[str, str]:
    """An environment in which every Python process can open synthetic:// addresses."""
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), *([inherited] if inherited else [])])}
