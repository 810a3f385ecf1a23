"""`eigenmerge plan` on a terminal of 80 columns and in a pipe: one line for the tensors of a kind, no number cut."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from eigenmerge.deployments.cli.commands.plan_command import plan

from .conftest import Merges, Terminal


@pytest.fixture
def recipe(merges: Merges) -> str:
    return yaml.safe_dump(merges.recipes[0])


def test_tensors_of_a_kind_share_a_line(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan(recipe)
    lines = capsys.readouterr().out.splitlines()
    (queries,) = [line for line in lines if line.endswith("model.layers.*.self_attn.q_proj.weight")]
    assert re.fullmatch(r"2 +32x32 +swudi +32\.8 KB +\S+ KB +\S+", queries), queries
    assert not any("layers.0" in line for line in lines if not line.startswith("  memory"))


def test_80_columns(recipe: str, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    plan(recipe, as_json=True)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["kinds"]
    assert sum(row["num_tensors"] for row in rows) == 21
    terminal.open(80)
    plan(recipe)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = lines[next(index for index, line in enumerate(lines) if line.startswith("tensors ")) + 1 :]
    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        number, shape, treatment = line.split()[:3]
        assert (int(number), shape) == (row["num_tensors"], "x".join(map(str, row["shape"])))
        assert treatment == (row["method"] or row["action"])
        assert row["name"].endswith(line.split()[-1].removeprefix("…"))


def test_a_long_line_is_broken_between_words(
    recipe: str, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(recipe)
    (whole,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  memory")]
    terminal.open(60)
    plan(recipe)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 60 or "mlp.down_proj.weight" in text
    assert " ".join(whole.split()) in " ".join(text.split())
