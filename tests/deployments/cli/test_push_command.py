"""`eigenmerge push` and `merge --push` against a stand-in for the Hub, in this process."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ...small_models import Models

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    hub_endpoint: str,
    no_hub_login: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Cli:
    address = f"{hub_endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub_endpoint)  # as HF_ENDPOINT sets it
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setenv("EIGENMERGE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_TOKEN", "writer")

    def run(*arguments: object) -> tuple[int, str, str]:
        from eigenmerge.deployments.cli.app import main

        monkeypatch.setattr(sys, "argv", ["eigenmerge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return int(stop.value.code or 0), found.out, found.err

    return run


def held(endpoint: str, name: str) -> dict[str, Any] | None:
    with urllib.request.urlopen(f"{endpoint}/test/state") as answer:
        return json.loads(answer.read())["repositories"].get(name)


def test_merge_and_push(cli: Cli, make_models: Callable[..., Models], tmp_path: Path, hub_endpoint: str) -> None:
    models = make_models(num_experts=2, layers=1)
    recipe, out = models.write_recipe("linear", parameters={"weight": 0.5}), tmp_path / "out"
    merge = ("merge", recipe, out, "--no-prefect", "--push", "me/first")
    code, text, errors = cli(*merge)
    assert code == 0, errors
    assert "sending model.safetensors (" in text and "Pushed 6 files, " in text, text
    assert text.splitlines()[-1].endswith(f": {hub_endpoint}/me/first") and "writer" not in text + errors
    found = held(hub_endpoint, "me/first")
    assert found is not None and found["private"]
    assert set(found["files"]) == {path.name for path in out.iterdir()} | {".gitattributes"}
    code, text, _ = cli(*merge)
    assert code == 0 and "Already complete" in text and f"Already there: {hub_endpoint}/me/first" in text
    (out / "mine.txt").write_text("x")
    code, text, _ = cli("push", out, "team/second", "--public", "--json")
    assert code == 0 and json.loads(text)["left_out"] == ["mine.txt"]
    found = held(hub_endpoint, "team/second")
    assert found is not None and not found["private"]


@pytest.mark.parametrize(
    ("arguments", "token", "line"),
    [
        (("--push", "me/x"), "", "there is no token for the Hub"),
        (("--push", "me/x"), "hf_wrong", "me/x: the Hub refuses the token"),
        (("--push", "stranger/x"), "writer", "stranger/x: the token may not write there"),
        (("--push", "/models/x"), "writer", "'/models/x' is no name of a repository"),
        (("--public",), "writer", "--public says how --push creates a repository"),
    ],
)
def test_a_push_that_will_fail_is_refused_before_the_merge(
    cli: Cli,
    make_models: Callable[..., Models],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    token: str,
    line: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    recipe = make_models(num_experts=2, layers=1).write_recipe("linear", parameters={"weight": 0.5})
    code, out, errors = cli("merge", recipe, tmp_path / "out", "--no-prefect", *arguments)
    assert code and not out and errors.count("\n") == 1 and errors.startswith("eigenmerge: error: "), errors
    assert line in errors and "hf_wrong" not in errors
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_push_of_what_is_no_merge(cli: Cli, tmp_path: Path, hub_endpoint: str) -> None:
    (tmp_path / "other").mkdir()
    code, _, errors = cli("push", tmp_path / "other2", "me/none")
    assert code == 1 and f"other2: does not exist; did you mean {tmp_path / 'other'}?" in errors
    code, _, errors = cli("push", tmp_path, "me/none")
    assert code == 1 and "has no eigenmerge_manifest.json" in errors and errors.count("\n") == 1
    assert held(hub_endpoint, "me/none") is None
