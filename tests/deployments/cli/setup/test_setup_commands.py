"""`init`, `doctor` and `schema`: what they print, write and refuse."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.deployments.cli.setup.doctor_command import doctor
from eigenmerge.deployments.cli.setup.init_command import init
from eigenmerge.deployments.cli.setup.schema_command import schema


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    for number, name in enumerate(("base", "a", "b")):
        (tmp_path / name).mkdir()
        weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        save_file({"layers.0.weight": weight}, tmp_path / name / "model.safetensors")
    return [str(tmp_path / name) for name in ("base", "a", "b")]


def test_init_writes_a_recipe_once(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my recipe.yml"
    init(models[1:], base=models[0], method="iso_c", output=str(path))
    recipe = read_recipe(path)
    assert (recipe.merge_method, recipe.base_model, recipe.expert_references) == ("iso_c", models[0], models[1:])
    assert "2 experts by iso_c" in capsys.readouterr().out
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="exists already"):
        init(models[1:], base=models[0], output=str(path))
    assert path.read_bytes() == before


def test_init_prints_and_leaves_nothing_when_it_fails(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(models[1:], base=models[0], output="-")
    assert read_recipe(capsys.readouterr().out).merge_method == "swudi_a"
    with pytest.raises(RecipeError, match="MODEL is missing"):
        init([], output=str(tmp_path / "r.yml"))
    with pytest.raises(RecipeError, match="cannot be written: No such file"):
        init(models[1:], base=models[0], output=str(tmp_path / "none" / "r.yml"))
    assert not (tmp_path / "r.yml").exists()


def test_doctor_checks_the_store_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(store=str(tmp_path / "store"), server=False, as_json=True)
    found = {check["subject"]: check for check in json.loads(capsys.readouterr().out)}
    assert found["store"]["state"] == "ok" and str(tmp_path / "store") in found["store"]["text"]
    assert torch.__version__.split("+")[0] in found["packages"]["text"]
    assert not list((tmp_path / "store").rglob("*.*"))  # the probe is deleted


def test_doctor_ends_with_1_where_a_merge_would_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(typer.Exit) as ended:
        doctor(store=str(tmp_path / "file"), server=False)
    assert ended.value.exit_code == 1
    assert "problem store" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(typer.Exit):
        doctor(store=str(tmp_path / "store"), server=False)
    assert "no Prefect server answers at http://127.0.0.1:9/api" in " ".join(capsys.readouterr().out.split())


def test_schema_is_one_json_value(capsys: pytest.CaptureFixture[str]) -> None:
    schema()
    assert json.loads(capsys.readouterr().out)["properties"]["merge_method"]["enum"]


def test_doctor_does_not_print_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", f"http://user:planted@{address}")
        doctor(store=str(tmp_path / "store"), server=False)
    out = capsys.readouterr().out
    assert "the configured server answers at" in out and address in out and "planted" not in out
