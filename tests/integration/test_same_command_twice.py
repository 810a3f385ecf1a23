"""The same command after success: exit code 0, "already complete", nothing written: queues call a command twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eigenmerge.core.errors import DestinationError
from eigenmerge.core.steps.scheduled.scheduled_merge import Schedule, scheduled_merge


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_commands(make_models: Any, command: Callable[..., Any], tmp_path: Path) -> None:
    models = make_models(num_experts=1, layers=1)
    recipe, out = models.write_recipe("swudi"), tmp_path / "out"
    first = command("merge", "--no-prefect", recipe, out)
    assert first.code == 0 and "Already complete" not in first.out
    before = times(out)
    second = command("merge", "--no-prefect", recipe, out)
    assert second.code == 0, second.err
    assert second.out.strip() == f"Already complete: {out} has the result of this recipe" and second.err == ""
    assert times(out) == before

    registry, publish = tmp_path / "registry", tmp_path / "published"
    registry.mkdir()
    shutil.copytree(models.experts[0], registry / "math")
    template = tmp_path / "template.yml"
    template.write_text(yaml.safe_dump({"merge_method": "swudi", "base_model": str(models.base)}))
    nightly = ("nightly", "--no-prefect", template, registry, publish)
    assert command(*nightly).code == 0
    before = times(publish)
    again = command(*nightly)
    assert again.code == 0 and "Nothing to merge" in again.out
    assert times(publish) == before


def test_a_result_that_was_changed_is_not_complete(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    recipe, out = make_models(num_experts=1, layers=1).write_recipe("ties"), tmp_path / "out"
    store = str(tmp_path / "store")
    pipeline(recipe, out, store=store)
    assert pipeline(recipe, out, store=store).already_complete
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(DestinationError, match=r"it was changed after the merge"):
        pipeline(recipe, out, store=store)


@pytest.mark.parametrize("inside", ["registry/published", "registry"])
def test_merges_are_published_outside_the_registry(tmp_path: Path, inside: str) -> None:
    registry = tmp_path / "registry"
    (registry / "math").mkdir(parents=True)
    (registry / "math" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(registry)
    for spelled in (registry, tmp_path / "link", f"{tmp_path}/x/../registry//"):
        schedule = Schedule({"merge_method": "ties"}, str(spelled), str(tmp_path / inside))
        with pytest.raises(DestinationError, match="registry"):
            scheduled_merge(schedule, lambda *_: pytest.fail("merged"), lambda _: None)
    assert times(tmp_path).keys() == {"config.json"}
