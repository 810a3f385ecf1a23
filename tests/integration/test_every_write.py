"""A disk that is full or becomes read-only at each write of a run: one clear line, and the same command resumes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError
from eigenmerge.core.formats.file_names import MARKER_NAME

FILES = (
    "model.safetensors",
    "eigenmerge_manifest.json",
    "eigenmerge_report.html",
    "README.md",
    "config.json",
    "tokenizer.json",
)
CALLS = ("open", "write", "fsync", "replace", "rename", "link", "mkdir", "copy_file_range", "sendfile")


class BrokenDisk:
    """Makes all calls that change files below `root` fail, from the n-th one on; files can still be removed."""

    def __init__(self, root: Path, first: int | None, code: int) -> None:
        self.root, self.first, self.code = str(root), first, code
        self.calls = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                if hasattr(os, name):
                    patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
            yield

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            path = self._path(name, arguments)
            if f"{path}/".startswith(f"{self.root}/"):
                self.calls += 1
                if self.first is not None and self.calls > self.first:
                    raise OSError(self.code, os.strerror(self.code), path)
            return real(*arguments, **keywords)

        return call

    def _path(self, name: str, arguments: tuple[Any, ...]) -> str:
        """Return the file that a call would change; "" if it changes none."""
        if name == "open":
            return os.fspath(arguments[0]) if arguments[1] & os.O_CREAT else ""
        if name in {"write", "fsync", "sendfile"}:
            return str(Path(f"/proc/self/fd/{arguments[0]}").readlink())
        if name == "copy_file_range":
            return str(Path(f"/proc/self/fd/{arguments[1]}").readlink())
        return os.fspath(arguments[-1] if name != "mkdir" else arguments[0])


@pytest.mark.parametrize("samples", [2, pytest.param(None, marks=pytest.mark.soak, id="all of them")])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS], ids=["full", "denied", "read-only"])
@pytest.mark.parametrize("where", ["store", "out"])
def test_each_write_fails_once_and_the_run_is_resumed(
    make_models: Any, pipeline: Any, tmp_path: Path, where: str, code: int, samples: int | None
) -> None:
    recipe = make_models(num_experts=2, layers=1).write_recipe("swudi_a", keep_sums=True)
    expected, reference_store = tmp_path / "reference-out", tmp_path / "reference-store"
    intact = BrokenDisk(tmp_path / f"reference-{where}", None, code)
    with intact.installed():
        pipeline(recipe, expected, store=str(reference_store), workers=1)
    assert intact.calls > 20
    # The writes are divided among the three kinds of failure: each write fails in one way.
    kinds = [errno.ENOSPC, errno.EACCES, errno.EROFS]
    step = len(kinds) if samples is None else len(kinds) * max(1, intact.calls // (len(kinds) * samples)) + 1
    out, store = tmp_path / "out", tmp_path / "store"
    for first in range(kinds.index(code), intact.calls, step):
        broken = BrokenDisk(tmp_path / where, first, code)
        with broken.installed(), pytest.raises(EigenmergeError) as caught:
            pipeline(recipe, out, store=str(store), workers=1)
        message = str(caught.value)
        assert os.strerror(code) in message and str(tmp_path / where) in message and "\n" not in message, (
            first,
            message,
        )
        assert not list(tmp_path.rglob("*.partial")), first
        is_complete = all((out / name).exists() for name in FILES) and not (out / MARKER_NAME).exists()
        assert not out.exists() or not any(out.iterdir()) or (out / MARKER_NAME).exists() or is_complete, first
        pipeline(recipe, out, store=str(store), workers=1)
        for name in FILES:
            assert (out / name).read_bytes() == (expected / name).read_bytes(), (first, name)
        shutil.rmtree(out)
        shutil.rmtree(store)
