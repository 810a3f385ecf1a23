"""`eigenmerge cache ls`: the points of a sweep differ by what they show, in 80 columns."""

from __future__ import annotations

import json

import pytest

from eigenmerge.deployments.cli.commands.cache_command import ls

from .conftest import Merges, Terminal


def test_what_differs_between_runs_of_the_same_models(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    ls(store=merges.store)
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if line.startswith("    with")] == [
        "with parameters.rank_ratio 0.85",
        "with parameters.rank_ratio 0.5",
    ]
    assert [line.split()[1] for line in lines if line.startswith("    to")] == [merges.first, merges.second]
    assert [line for line in lines if line.startswith("    of")] == ["    of   math, code, law on base"] * 2
    ls(store=merges.store, as_json=True)
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["differs"] for run in runs] == [{"parameters.rank_ratio": 0.85}, {"parameters.rank_ratio": 0.5}]


def test_80_columns(merges: Merges, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.open(80)
    ls(store=merges.store)
    lines = capsys.readouterr().out.splitlines()
    # A path is never broken: only such a line may be longer.
    assert all(len(line) <= 80 or merges.store.rpartition("/")[0] in line for line in lines)
    assert lines[0].split() == ["run", "state", "method", "started", "size", "own"]
