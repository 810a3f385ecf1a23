"""The protocol `synthetic://` for this process and, through `synthetic_environment`, for processes that tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fsspec
import pytest

PLUGIN = Path(__file__).parent / "plugin"

if str(PLUGIN) not in sys.path:
    sys.path.insert(0, str(PLUGIN))
# An entry point in the folder does the same where PYTHONPATH names it before fsspec is imported; here it already is.
fsspec.register_implementation("synthetic", "synthetic_checkpoint.filesystem.SyntheticFileSystem", clobber=True)


@pytest.fixture
def synthetic_environment() -> dict[str, str]:
    """An environment in which any Python process opens synthetic:// without being told."""
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), *([inherited] if inherited else [])])}
