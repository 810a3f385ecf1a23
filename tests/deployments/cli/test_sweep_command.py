"""`eigenmerge sweep` as a stranger uses it, in a pipe: twice, with mistakes, and with a merge of the best."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ...small_models import Models, load_checkpoint

SCORES = """
def size(candidate):
    weight = candidate["model.layers.0.self_attn.q_proj.weight"]
    return {"size": float(weight.abs().sum()), "tensors": len(candidate)}
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command line in this process, without Prefect."""
    monkeypatch.setenv("EIGENMERGE_STORE", str(tmp_path / "store"))

    def run(*arguments: str | Path) -> Any:
        from eigenmerge.deployments.cli.app import main

        monkeypatch.setattr(sys, "argv", ["eigenmerge", *map(str, arguments), "--no-prefect"])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def work(make_models: Callable[..., Models], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    models = make_models(layers=1)
    (tmp_path / "scores_of_test.py").write_text(SCORES)
    monkeypatch.chdir(tmp_path)
    return models


def test_a_sweep_and_the_merge_of_its_best(work: Models, command: Callable[..., Any]) -> None:
    recipe = work.write_recipe("swudi")
    grid = ["--grid", "exp_time=1,30", "--grid", "rank_ratio=0.5:0.9:0.4"]
    arguments = ["sweep", recipe, *grid, "--evaluate", "scores_of_test:size", "--plot", "response.png"]
    done = command(*arguments, "--output", "best", "--minimum", "tensors=5")
    assert done.code == 0, done.err
    assert Path("response.png").read_bytes().startswith(b"\x89PNG")
    lines = done.out.splitlines()
    assert lines[0] == "4 candidates, 4 scored now; by highest size:"
    assert "4 of 4: exp_time=30, rank_ratio=0.9: size" in done.err
    place = next(line.split(": ", 1)[1] for line in lines if line.startswith("  recipe: "))
    best = yaml.safe_load(Path(place).read_text())
    card = Path("best/README.md").read_text()
    assert "name: sweep\n" in card and "| sweep | size | " in card, card
    assert load_checkpoint(Path("best")) and set(best["parameters"]) == {"exp_time", "rank_ratio"}
    end = next(index for index, line in enumerate(lines) if line.startswith("Best (*)"))
    assert max(map(len, lines[:end])) <= 80

    none = command(*arguments, "--output", "none", "--minimum", "tensors=500")
    assert (none.code, list(Path("none").glob("*"))) == (3, [])
    assert "Best: none, because no candidate keeps all limits: tensors at least 500\n" in none.out

    again = command(*arguments, "--json")
    assert again.code == 0, again.err
    result = json.loads(again.out)
    assert (result["num_scored"], len(result["candidates"]), result["best"]) == (0, 4, best["parameters"])
    assert command("merge", place, "merged").code == 0
    for name, tensor in load_checkpoint(Path("merged")).items():
        assert tensor.equal(load_checkpoint(Path("best"))[name])


def test_without_data_and_mistakes(work: Models, command: Callable[..., Any]) -> None:
    recipe = work.write_recipe("swudi")
    done = command("sweep", recipe, "--grid", "rank_ratio=0.4:0.8:0.2")
    assert done.code == 0, done.err
    assert "3 candidates, 3 scored now; by lowest gcv:" in done.out
    for arguments, message in {
        ("--grid", "rank_rato=0.5"): "did you mean 'rank_ratio'",
        ("--grid", "rank_ratio=0.5", "--grid", "rank_ratio=0.6"): "is given twice",
        ("--grid", "rank_ratio=0.5", "--evaluate", "nothing:size"): "there is no module nothing",
        ("--grid", "rank_ratio=0.5", "--overwrite"): "there is no --output",
        ("--grid", "rank_ratio=0.5", "--plot", "no/such/folder.png"): "expected a file in a folder that exists",
        ("--grid", "rank_ratio=0.5", "--output", str(work.base)): "is the location of the input model",
    }.items():
        failed = command("sweep", recipe, *arguments)
        assert failed.code != 0 and message in failed.err, failed.err
        lines = [line for line in failed.err.splitlines() if not line.startswith("eigenmerge sweep: ")]  # of the status
        assert len(lines) == 1 and failed.out == ""


def test_optuna(work: Models, command: Callable[..., Any]) -> None:
    pytest.importorskip("optuna")
    arguments = ["sweep", work.write_recipe("swudi"), "--grid", "exp_time=1..100:log", "--evaluate"]
    arguments += [
        "scores_of_test:size",
        "--optimizer",
        "optuna",
        "--trials",
        "5",
        "--seed",
        "3",
        "--no-prefect",
        "--json",
    ]
    first, second = (json.loads(command(*arguments).out) for _ in range(2))
    assert (first["num_scored"], second["num_scored"]) == (5, 0)
    assert first["candidates"] == [{**one, "seconds": two["seconds"]} for one, two in zip(
        second["candidates"], first["candidates"], strict=True)]  # fmt: skip
