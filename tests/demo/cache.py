"""Folders that are made once: each is complete or absent, and a key file beside it identifies its inputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def key_of(**parts: str) -> str:
    """Return a hash of everything that a result depends on, by name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_made(folder: Path, key: str) -> bool:
    """Return whether `folder` was completed from the inputs of this key."""
    try:
        return folder.is_dir() and _key_file(folder).read_text() == key
    except OSError:
        return False


@contextmanager
def making(folder: Path, key: str) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block succeeds.

    The old key is removed first and the new one written last, so after a kill the next run makes the folder again.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run with the same process id, which is usual in containers
    scratch.mkdir(parents=True)
    try:
        yield scratch
        _key_file(folder).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        _key_file(folder).write_text(key)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _key_file(folder: Path) -> Path:
    """Return the path of the key, beside the folder, so that it is not a file of the checkpoint."""
    return folder.with_name(f"{folder.name}.key")
