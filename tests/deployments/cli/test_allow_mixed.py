"""`--allow-mixed-architectures`, in mergekit `--allow-crimes`, of the commands plan and merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from eigenmerge.deployments.cli.app import app
from eigenmerge.deployments.cli.commands import merge_command


@pytest.fixture
def recipe(tmp_path: Path, save_model: Callable[..., Path]) -> Path:
    weights = {"model.layers.0.mlp.up_proj.weight": torch.eye(4)}
    places = [save_model(tmp_path / kind, weights, {"model_type": kind}) for kind in ("llama", "mistral")]
    file = tmp_path / "recipe.yml"
    file.write_text(f"merge_method: linear\nbase_model: {places[0]}\nmodels: [{places[1]}]\n")
    return file


@pytest.mark.parametrize("option", ["--allow-mixed-architectures", "--allow-crimes"])
def test_plan_with_the_option(recipe: Path, option: str) -> None:
    result = CliRunner().invoke(app, ["plan", str(recipe), "--json", option], catch_exceptions=False)
    assert result.exit_code == 0
    assert any("model_type is 'llama'" in warning for warning in json.loads(result.stdout)["warnings"])


def test_merge_with_and_without_the_option(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_command, "stop_on_signals", lambda _: None)
    command = ["merge", str(recipe), str(recipe.parent / "out"), "--no-prefect", "--quiet"]
    command += ["--store", str(recipe.parent / "store")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0 and not (recipe.parent / "out/config.json").exists()
    result = CliRunner().invoke(app, [*command, "--allow-crimes"], catch_exceptions=False)
    assert result.exit_code == 0
    manifest = json.loads((recipe.parent / "out/eigenmerge_manifest.json").read_text())
    assert manifest["recipe"]["allow_mixed_architectures"] is True
