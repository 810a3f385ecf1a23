"""The same command after success: nothing is done where the result is complete, and a changed one is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.errors import DestinationError
from eigenmerge.core.formats.file_names import INDEX_NAME, MANIFEST_NAME, MODEL_CARD_NAME

SEVERAL_FILES = {"output": {"max_shard_size": "40KB"}}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("keys", [{}, SEVERAL_FILES])
def test_a_second_call_does_nothing(models: Any, pipeline: Any, tmp_path: Path, keys: dict[str, Any]) -> None:
    out, recipe = tmp_path / "out", models.recipe("average", **keys)
    first = pipeline(recipe, out)
    (out / MODEL_CARD_NAME).write_text("edited")
    (out / "notes.txt").write_text("of the user")
    before = state(out)
    again = pipeline(recipe, out, store=tmp_path / "another store")
    assert again.already_complete and not first.already_complete
    assert (again.run_key, again.files, again.num_tensors) == (first.run_key, first.files, first.num_tensors)
    assert (again.shards_done, again.bytes_read, again.bytes_written) == (0, 0, 0)
    assert state(out) == before and not (tmp_path / "another store").exists()
    with pytest.raises(DestinationError, match="is not empty"):
        pipeline(models.recipe("wudi_pinv", **keys), out)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing file": (lambda out: next(out.glob("model-00002*")).unlink(), "is missing"),
    "a shorter file": (lambda out: _cut(next(out.glob("model-00002*"))), "bytes, expected"),
    "another header": (
        lambda out: next(out.glob("model-00002*")).write_bytes(
            next(out.glob("model-00002*")).read_bytes().replace(b'"F32"', b'"I32"', 1)
        ),
        "another header",
    ),
    "another config": (lambda out: (out / "config.json").write_text("{}"), "config.json was changed"),
    "no tokenizer": (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "no index": (lambda out: (out / INDEX_NAME).unlink(), "is missing or was changed"),
    "another index": (lambda out: (out / INDEX_NAME).write_text('{"weight_map": {}}'), "is missing or was changed"),
    "foreign weights": (lambda out: (out / "pytorch_model.bin").write_bytes(b""), "loaders may read it"),
    "a damaged manifest": (
        lambda out: (out / MANIFEST_NAME).write_text(
            json.dumps({**json.loads((out / MANIFEST_NAME).read_text()), "files": 1})
        ),
        "is damaged",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished merge of several files, and its recipe."""
    from eigenmerge.core.steps.merge_run import merge_run
    from eigenmerge.core.steps.read_recipe import read_recipe

    from ...small_models import base_weights, expert_weights, save_model

    root = tmp_path_factory.mktemp("finished")
    base = base_weights(layers=1)
    save_model(root / "base", base)
    save_model(root / "expert", expert_weights(base, 0))
    recipe = {"merge_method": "average", "base_model": str(root / "base"), "models": [{"model": str(root / "expert")}]}
    merge_run(read_recipe(recipe | SEVERAL_FILES), str(root / "out"), store=str(root / "store"))
    return root / "out", recipe | SEVERAL_FILES


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_result_is_told(finished: tuple[Path, dict[str, Any]], pipeline: Any, change: str) -> None:
    out, recipe = finished
    before = {path: path.read_bytes() for path in out.iterdir()}
    alter, problem = CHANGES[change]
    alter(out)
    try:
        with pytest.raises(DestinationError, match=problem) as refused:
            pipeline(recipe, out)
        assert "it was changed after the merge; see `eigenmerge verify`" in str(refused.value)
    finally:
        for path in out.iterdir():
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
