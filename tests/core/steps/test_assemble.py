"""Assembling a checkpoint: two merges with one destination, and the state of the destination after an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.cache.reports import ShardReport
from eigenmerge.core.errors import DestinationError, ObjectNotFoundError
from eigenmerge.core.formats.file_names import INDEX_NAME, MANIFEST_NAME, MARKER_NAME, REPORT_NAME
from eigenmerge.core.output.destination import Destination, prepare_destination
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.run import Run
from eigenmerge.core.steps.assemble import Assembled, assemble
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.merge_shard import merge_shard
from eigenmerge.core.storage.store import Store

SEVERAL_FILES = {"output": {"max_shard_size": "40KB"}}


@dataclass
class MergedShards:
    """A merge whose parts are complete and whose checkpoint is not assembled yet."""

    run: Run
    reports: list[ShardReport]
    target: Destination

    def assemble(self) -> Assembled:
        return assemble(self.run, self.reports, self.target)


@pytest.fixture
def merge_shards(make_models: Callable[..., Any], tmp_path: Path) -> Callable[..., MergedShards]:
    models = make_models(num_experts=2, layers=1)

    def make(method: str = "average", *, overwrite: bool = False, **keys: Any) -> MergedShards:
        plan = make_plan(recipe_from_mapping(models.recipe(method, **keys)))
        out = str(tmp_path / "out")
        target = prepare_destination(plan, out, Store(out), overwrite=overwrite)
        run = Run(plan, Store(str(tmp_path / "store")))
        return MergedShards(run, [merge_shard(job) for job in run.jobs()], target)

    return make


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_result_that_another_run_has_written_is_kept(
    merge_shards: Callable[..., MergedShards], tmp_path: Path
) -> None:
    one, two = merge_shards(**SEVERAL_FILES), merge_shards(**SEVERAL_FILES)
    assert one.assemble().warnings == ()
    before = state(tmp_path / "out")
    result = two.assemble()
    assert any("another run has written the same result" in warning for warning in result.warnings)
    assert result.bytes_through == 0 and state(tmp_path / "out") == before


@pytest.mark.parametrize("other", ["another method", "one file"])
def test_a_result_of_another_recipe_is_not_touched(
    merge_shards: Callable[..., MergedShards], tmp_path: Path, other: str
) -> None:
    one = merge_shards(**SEVERAL_FILES)
    two = merge_shards("wudi_pinv", **SEVERAL_FILES) if other == "another method" else merge_shards()
    one.assemble()
    before = state(tmp_path / "out")
    with pytest.raises(DestinationError, match="not empty"):
        two.assemble()
    assert state(tmp_path / "out") == before


def test_after_an_error_the_marker_remains_and_the_same_recipe_completes(
    merge_shards: Callable[..., MergedShards], tmp_path: Path
) -> None:
    one, out = merge_shards(**SEVERAL_FILES), tmp_path / "out"
    part = tmp_path / "store" / one.run.plan.shards[-1].part_key
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(ObjectNotFoundError):
        one.assemble()
    marker = json.loads((out / MARKER_NAME).read_text())
    assert marker.keys() == {"run_key", "files"} and marker["run_key"] == one.run.plan.run_key
    assert not (out / INDEX_NAME).exists()
    part.write_bytes(content)
    merge_shards(**SEVERAL_FILES).assemble()
    assert (out / INDEX_NAME).exists() and not (out / MARKER_NAME).exists()


def test_there_is_no_index_while_files_of_two_merges_are_present(
    merge_shards: Callable[..., MergedShards], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    merge_shards(**SEVERAL_FILES).assemble()
    old = (out / MANIFEST_NAME).read_bytes()
    two = merge_shards("wudi_pinv", overwrite=True, **SEVERAL_FILES)
    before_writes: dict[str, set[str]] = {}
    write = Store.write

    def watched(self: Store, key: str, data: Any) -> None:
        before_writes[key] = {path.name for path in out.iterdir()}
        write(self, key, data)

    monkeypatch.setattr(Store, "write", watched)
    two.assemble()
    assert list(before_writes)[-1] == INDEX_NAME, "the index is written last"
    assert MARKER_NAME in before_writes[INDEX_NAME] and MANIFEST_NAME in before_writes[INDEX_NAME]
    assert all(INDEX_NAME not in names for names in before_writes.values())
    assert (out / MANIFEST_NAME).read_bytes() != old


def test_a_manifest_with_too_many_numbers_for_a_report_is_written(
    merge_shards: Callable[..., MergedShards], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = merge_shards()
    monkeypatch.setattr("eigenmerge.core.output.read_manifest.MOST_MANIFEST_VALUES", 50)
    (warning,) = merged.assemble().warnings
    assert warning.startswith(f"{REPORT_NAME} is not written: ")
    assert (tmp_path / "out" / MANIFEST_NAME).exists() and not (tmp_path / "out" / REPORT_NAME).exists()
