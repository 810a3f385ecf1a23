"""Folders that are made once: each has beside it the key of what it was made from, and appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def key_of(**parts: str) -> str:
    """Hash of everything that a result depends on, by name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_made(folder: Path, key: str) -> bool:
    """Was `folder` completed, and from exactly this?"""
    try:
        return folder.is_dir() and _key_file(folder).read_text() == key
    except OSError:
        return False


@contextmanager
def making(folder: Path, key: str) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block succeeds, in place of what stood there.

    The old key goes first and the new one comes last: killed anywhere between, the next run makes the folder again.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run that had the same process id, as in containers
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
    """Beside the folder, not in it: what lies in a checkpoint's folder would travel with the checkpoint."""
    return folder.with_name(f"{folder.name}.key")
