"""Files that Eigenmerge did not write are neither replaced nor removed, with --overwrite neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.errors import DestinationError
from eigenmerge.core.formats.file_names import MANIFEST_NAME, MARKER_NAME, REPORT_NAME
from eigenmerge.core.output.owned_files import owned_names
from eigenmerge.core.storage.store import Store

from .examples import RUN_KEY, make_checkpoint, small_plan


@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "pytorch_model.bin", "model-00001-of-00002.safetensors", "tokenizer.json"]
)
def test_a_file_in_the_way_is_refused(models: Any, pipeline: Any, tmp_path: Path, name: str) -> None:
    """Each was replaced or deleted before."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"of the user")
    (out / "notes.txt").write_bytes(b"too")
    with pytest.raises(DestinationError, match=rf"has '{name}', which Eigenmerge did not write"):
        pipeline(models.recipe("average"), out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {name: b"of the user", "notes.txt": b"too"}
    assert not (tmp_path / "store").exists(), "refused before anything is computed"


def test_a_merge_is_replaced_and_other_files_stay(models: Any, pipeline: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (models.base / "vocab.txt").write_text("a\nb\n")
    pipeline(models.recipe("average", output={"max_shard_size": "40KB"}), out)
    (out / "notes.txt").write_bytes(b"of the user")
    (out / "sub").mkdir()
    (out / "sub/model.safetensors").write_bytes(b"of the user")
    (models.base / "vocab.txt").unlink()
    pipeline(models.recipe("average"), out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", MANIFEST_NAME, REPORT_NAME, "model.safetensors", "notes.txt", "sub",
        "tokenizer.json",
    ]  # fmt: skip


def test_the_page_of_another_merge_does_not_stay(models: Any, pipeline: Any, tmp_path: Path) -> None:
    """Where the merge that replaces it writes none."""
    out = tmp_path / "out"
    pipeline(models.recipe("average"), out)
    page = out / REPORT_NAME
    assert page.exists()
    pipeline(models.recipe("linear"), out, overwrite=True, report=False)
    assert not page.exists() and REPORT_NAME not in json.loads((out / MANIFEST_NAME).read_text())["side_files"]


def test_files_of_a_replaced_merge_are_owned_until_they_are_removed(tmp_path: Path) -> None:
    """A run that is killed between its claim and the removal leaves them to the next one."""
    plan, store = small_plan(), Store(str(tmp_path))
    make_checkpoint(plan).write(store)
    store.write("old.json", b"")
    present = {info.key for info in store.list("")}
    assert owned_names(store, present) == present - {"old.json"}
    store.delete([MANIFEST_NAME])
    present.remove(MANIFEST_NAME)
    store.write(MARKER_NAME, json.dumps({"run_key": RUN_KEY, "files": ["old.json"]}).encode())
    assert owned_names(store, {*present, MARKER_NAME}) == {"old.json", MARKER_NAME, "model.safetensors.index.json"}


def test_the_marker_of_an_earlier_version_owns_what_loaders_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(MARKER_NAME, json.dumps({"run_key": RUN_KEY}).encode())
    present = [MARKER_NAME, "config.json", "model.safetensors", "notes.txt", "sub/model.safetensors"]
    assert owned_names(store, present) == {MARKER_NAME, "config.json", "model.safetensors"}
