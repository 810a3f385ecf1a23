"""Soups of checkpoints by a pattern: which are taken, in which order, with which weights; local and remote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.recipe.soup import checkpoint_weights
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe

STEPS = (8, 9, 10, 11, 100)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in STEPS:
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        save_file({"w.weight": torch.full((4, 4), float(step))}, folder / "model.safetensors")
    (tmp_path / "step-notes.txt").write_text("not a checkpoint")
    return tmp_path


def names(recipe: Any) -> list[str]:
    return [Path(item.model).name for item in recipe.models]


def soup(run: Path, **keys: Any) -> Any:
    return read_recipe({"merge_method": "linear", "models": {"glob": f"{run}/step-*", **keys}})


def test_checkpoints_are_taken_in_the_order_of_their_numbers(run: Path) -> None:
    assert names(soup(run)) == [f"step-{step}" for step in STEPS]
    assert names(soup(run, last=2)) == ["step-11", "step-100"]
    assert names(soup(run, first=2)) == ["step-8", "step-9"]
    assert names(soup(run, every=2)) == ["step-8", "step-10", "step-100"]
    assert names(soup(run, every=2, last=2)) == ["step-10", "step-100"]


@pytest.mark.parametrize("scheme", ["http", "https", "HTTPS"])
def test_a_pattern_on_a_web_server_is_refused(scheme: str) -> None:
    """Also in a module; without any request, so that the host need not exist."""
    models = {"glob": f"{scheme}://host.invalid/run/step-*?token=secret"}
    for recipe, key in (
        ({"merge_method": "linear", "models": models}, "models.glob: "),
        ({"merge_method": "linear", "modules": {"a": {"models": models}}}, "modules.a.models.glob: "),
    ):
        with pytest.raises(RecipeError, match="write the address of each checkpoint as a list under models") as caught:
            read_recipe(recipe)
        assert str(caught.value).startswith(key) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"glob": "/nowhere/x-*"}, "models.glob: /nowhere/x-* matches nothing"),
        ({"last": 9}, "models: last is 9; "),
        ({"every": 5}, "is left of"),
        ({"last": 1}, "only "),
        ({"first": 2, "last": 2}, "keep one of them"),
        ({"lsat": 2}, "did you mean 'last'"),
        ({"weights": "sqrt"}, "models.weights: "),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Path, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        soup(run, **keys)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_weights_need_a_method_that_has_them(run: Path) -> None:
    keys = {"glob": f"{run}/step-*", "weights": "cosine"}
    with pytest.raises(RecipeError, match="karcher has no weights"):
        read_recipe({"merge_method": "karcher", "models": keys})


@pytest.mark.parametrize("rule", ["uniform", "linear", "cosine", "1-sqrt"])
def test_weights_are_the_steps_of_a_decay(rule: Any) -> None:
    weights = checkpoint_weights(rule, 16)
    assert sum(weights) == pytest.approx(1) and min(weights) > 0
    decay = [sum(weights[step:]) for step in range(16)]  # factor on the updates after each checkpoint
    middle = {"uniform": 0.5, "linear": 0.5, "cosine": 0.5, "1-sqrt": 1 - 0.5**0.5}[rule]
    assert decay[0] == pytest.approx(1) and decay[8] == pytest.approx(middle)


def test_a_soup_is_the_weighted_mean(run: Path, pipeline: Callable[..., Any], tmp_path: Path) -> None:
    recipe = soup(run, last=3, weights="1-sqrt")
    pipeline(recipe, tmp_path / "out")
    expected = sum(w * s for w, s in zip(checkpoint_weights("1-sqrt", 3), STEPS[-3:], strict=True))
    merged = load_file(tmp_path / "out" / "model.safetensors")["w.weight"]
    torch.testing.assert_close(merged, torch.full((4, 4), expected))
    assert [Path(item["model"]).name for item in recipe.canonical()["models"]] == names(recipe)


def test_memory_is_flat_in_the_number_of_checkpoints(run: Path) -> None:
    assert make_plan(soup(run, last=2)).peak_bytes == make_plan(soup(run)).peak_bytes


def test_a_remote_pattern(run: Path) -> None:
    files = fsspec.filesystem("memory")
    for step in STEPS:
        files.put(str(run / f"step-{step}" / "model.safetensors"), f"/soup-test/step-{step}/model.safetensors")
    recipe = read_recipe("merge_method: linear\nmodels: {glob: 'memory://soup-test/step-*', last: 2}\n")
    assert [item.model for item in recipe.models or ()] == [
        "memory:///soup-test/step-11",
        "memory:///soup-test/step-100",
    ]
    assert make_plan(recipe).num_tensors == 1
