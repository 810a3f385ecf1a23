"""Nights without Prefect: bad experts are skipped by name, and all that decides the result decides the update."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.errors import BudgetError, EigenmergeError
from eigenmerge.core.steps.merge_run import run_in_threads
from eigenmerge.core.steps.open_run import prepare_run
from eigenmerge.core.steps.scheduled.scheduled_merge import NightlyResult, Schedule, scheduled_merge

NAME = "model.layers.0.q_proj.weight"
Night = Callable[..., NightlyResult]


def save(folder: Path, seed: int, shape: tuple[int, ...] = (8, 8), **changes: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    save_file({NAME: tensor, **changes}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """One night over tmp_path/registry with two good experts; publishes to tmp_path/published."""
    save(tmp_path / "base", 0)
    save(tmp_path / "registry" / "one", 1)
    save(tmp_path / "registry" / "two", 2)

    def run(template: Mapping[str, Any] | None = None, merge: Any = None, **options: Any) -> NightlyResult:
        def compute(recipe: Any, destination: str, plan: Any) -> Any:
            store = str(tmp_path / "store")
            return run_in_threads(prepare_run(recipe, destination, store=store, overwrite=True, plan=plan))

        recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), **(template or {})}
        places = {"registry": str(tmp_path / "registry"), "publish": str(tmp_path / "published")}
        return scheduled_merge(Schedule(recipe, **places, **options), merge or compute, lambda line: None)

    return run


def latest(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "published" / "latest.json").read_text())


def nan(folder: Path) -> None:
    tensor = torch.ones(8, 8)
    tensor[2, 3] = float("nan")
    save(folder, 3, **{NAME: tensor})


def truncated(folder: Path) -> None:
    file = save(folder, 3) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def hostile_header(folder: Path) -> None:
    folder.mkdir(parents=True)
    header = b'{"x":' + b"[" * 5000
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def config_is_a_list(folder: Path) -> None:
    (save(folder, 3) / "config.json").write_text("[1]")


BAD: dict[str, Callable[[Path], object]] = {
    "nan": nan,
    "truncated": truncated,
    "header": hostile_header,
    "config": config_is_a_list,
    "shape": lambda folder: save(folder, 3, (4, 8)),
    "vector": lambda folder: save(folder, 3, (64,)),
    "integers": lambda folder: save(folder, 3, **{NAME: torch.ones(8, 8, dtype=torch.int8)}),
    "pickle": lambda folder: (folder.mkdir(parents=True), (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")),
    "nothing": lambda folder: (folder.mkdir(parents=True), (folder / "notes.txt").write_text("soon")),
}


def test_bad_experts_cost_themselves_only(night: Night, tmp_path: Path) -> None:
    reference = night()
    assert reference.merged is not None and not reference.skipped
    expected = (Path(reference.destination or "") / "model.safetensors").read_bytes()
    for name, make in BAD.items():
        make(tmp_path / "registry" / name)
    save(tmp_path / "registry" / "three", 4)
    found = night()
    skipped = set(found.skipped)
    assert set(BAD) == skipped
    assert NAME in found.skipped["nan"] and found.merged is not None and found.merged.num_experts == 3
    assert set(latest(tmp_path)["experts"]) == {"one", "two", "three"}
    folders = [path for path in (tmp_path / "published").glob("20*") if path.is_dir()]
    assert all(any(path.iterdir()) for path in folders), "a merge that failed leaves no folder"

    # the next night reads no weights to find the same again, and an expert that is corrected is merged
    idle = night()
    assert (idle.outcome, idle.skipped) == ("nothing new", found.skipped)
    save(tmp_path / "registry" / "nan", 5)
    assert "nan" not in night().skipped
    assert (Path(reference.destination or "") / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("kind", ["nan", "shape", "truncated"])
def test_strict_and_only_bad_experts_are_errors(night: Night, tmp_path: Path, kind: str) -> None:
    BAD[kind](tmp_path / "registry" / "bad")
    with pytest.raises(EigenmergeError, match=r"'bad' cannot be merged: .*--strict"):
        night(strict=True)
    for name in ("one", "two"):
        BAD[kind](tmp_path / "registry" / f"{name}-bad")
        for path in (tmp_path / "registry" / name).iterdir():
            path.unlink()
        (tmp_path / "registry" / name).rmdir()
    with pytest.raises(EigenmergeError):
        night()
    assert not (tmp_path / "published" / "latest.json").exists()


def test_a_wrong_base_or_recipe_is_no_fault_of_experts(night: Night, tmp_path: Path) -> None:
    with pytest.raises(EigenmergeError, match="no such model"):
        night({"base_model": str(tmp_path / "absent")})
    with pytest.raises(EigenmergeError, match="densty"):
        night({"merge_method": "ties", "parameters": {"densty": 0.5}})
    with pytest.raises(BudgetError):
        night(max_memory=10)


def test_a_night_sees_every_change_that_decides_the_result(night: Night, tmp_path: Path) -> None:
    own = save(tmp_path / "own", 9)
    template = {"models": [{"model": str(own)}]}
    assert night(template).outcome == "full"
    assert night(template).outcome == "nothing new"
    changes: list[Callable[[], object]] = [
        lambda: (tmp_path / "base" / "tokenizer.json").write_text('{"version": "1.0"}'),
        lambda: (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}"),
        lambda: save(own, 10, (8, 8)),
    ]
    for change in changes:
        change()
        assert night(template).outcome == "full"
        assert night(template).outcome == "nothing new"
    save(tmp_path / "base", 11)
    assert night(template).outcome == "full"


def test_a_published_folder_that_is_gone_or_damaged_is_published_again(night: Night, tmp_path: Path) -> None:
    def weights() -> Path:
        return tmp_path / "published" / latest(tmp_path)["folder"] / "model.safetensors"

    night()
    good = weights().read_bytes()
    damages: list[Callable[[], object]] = [
        lambda: weights().unlink(),
        lambda: weights().write_bytes(good[:-8]),
        lambda: weights().write_bytes(good[:-8] + bytes(8)),
        lambda: (weights().parent / "eigenmerge_manifest.json").write_text("{}"),
        lambda: (weights().parent / "config.json").write_text("[]"),
        lambda: [path.unlink() for path in weights().parent.iterdir()],
    ]
    for damage in damages:
        damage()
        again = night()
        assert again.outcome == "full", again.reason
        assert weights().read_bytes() == good
        assert night().outcome == "nothing new"
    weights().write_bytes(good)  # a copy of the same bytes is no damage
    assert night().outcome == "nothing new"


def test_a_run_that_was_planned_earlier_does_not_publish_over_a_later_one(night: Night, tmp_path: Path) -> None:
    def slow(recipe: Any, destination: str, plan: Any) -> Any:
        """While this run merges, an expert is added, and a later run finds and publishes it."""
        save(tmp_path / "registry" / "three", 3)
        later = night()
        assert later.outcome in ("full", "incremental")
        prepared = prepare_run(recipe, destination, store=str(tmp_path / "store"), overwrite=True, plan=plan)
        return run_in_threads(prepared)

    found = night(merge=slow)
    assert found.outcome == "superseded"
    assert set(latest(tmp_path)["experts"]) == {"one", "two", "three"}
    assert found.destination == str(tmp_path / "published" / latest(tmp_path)["folder"])
    assert night().outcome == "nothing new"


def test_retention_keeps_the_newest_and_what_is_not_ours(night: Night, tmp_path: Path) -> None:
    published = tmp_path / "published"
    names = []
    for number in range(4):
        save(tmp_path / "registry" / "one", 20 + number)
        night()
        names.append(latest(tmp_path)["folder"])
    (published / "2020-01-01-deadbeef").mkdir()
    (published / "2020-01-01-deadbeef" / "model.safetensors").write_bytes(b"of somebody else")
    (published / names[0] / "notes.txt").write_text("of the user")
    found = night(keep=2)
    assert found.outcome == "nothing new"
    assert not (published / ".eigenmerge-runs").exists()
    assert {path.name for path in published.iterdir() if path.is_dir()} == {
        *names[2:], names[0], "2020-01-01-deadbeef",
    }  # fmt: skip
    assert [path.name for path in (published / names[0]).iterdir()] == ["notes.txt"]
    assert latest(tmp_path)["history"] == [names[3], names[2]]
    save(tmp_path / "registry" / "one", 30)
    night(keep=1)
    assert latest(tmp_path)["history"] == [latest(tmp_path)["folder"]]
    assert (published / latest(tmp_path)["folder"] / "model.safetensors").exists()


def test_a_merge_is_compared_with_the_last_one(night: Night, tmp_path: Path) -> None:
    template = {"merge_method": "swudi_a", "dtype": "float32"}
    assert night(template).changes == ()
    save(tmp_path / "registry" / "three", 3)
    first = night(template).changes
    assert first[0] == f"experts new: {tmp_path}/registry/three" and first[1] == "1 of 1 tensors differ"
    save(tmp_path / "registry" / "two", 5)
    assert night(template).changes[0] == f"experts changed: {tmp_path}/registry/two"
