"""The page of a benchmark and the comparison of two, from runs that are written here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peer_speed import Row, main, page, read_rows, recipe, worse_rows


def row(ours: float, theirs: float | None = 10.0, method: str = "ties") -> Row:
    runs = {"eigenmerge": [(ours, ours, 500.0), (ours + 1, ours, 500.0)]}
    if theirs is not None:
        runs["mergekit"] = [(theirs, theirs, 1000.0)]
    return Row("400 MB", method, 3, runs)


def test_only_ratios_that_became_worse_are_reported() -> None:
    reference = {row(5.0).label: row(5.0)}
    assert worse_rows([row(5.9)], reference) == []
    (line, _) = worse_rows([row(7.0)], reference)
    assert line == "400 MB, ties, 3 experts: CPU is 0.75 of mergekit's, and was 0.55"
    assert worse_rows([row(99.0, theirs=None)], reference) == [], "nothing to compare with"
    assert worse_rows([row(14.0, theirs=20.0)], reference) == [
        "400 MB, ties, 3 experts: CPU is 0.72 of mergekit's, and was 0.55",
        "400 MB, ties, 3 experts: wall is 0.70 of mergekit's, and was 0.50",
    ]
    assert worse_rows([row(99.0, method="linear")], reference) == [], "a row that the reference lacks"


def test_the_page_has_the_spread_and_what_was_not_timed(tmp_path: Path) -> None:
    text = page([row(5.0), row(2.0, None, "linear")], "mergekit 0.1.5")
    assert "| 400 MB, ties, 3 experts | 5.5 (5.0-6.0) | 10.0 | 5.0 | 10.0 | 0.49 | 0.98 |" in text
    assert "| 400 MB, linear, 3 experts | 2.5 (2.0-3.0) | - |" in text and "mergekit 0.1.5" in text
    assert json.loads(recipe(tmp_path, "ties", 2))["models"][1]["parameters"] == {"weight": 0.4, "density": 0.3}


def test_nothing_is_measured_where_there_is_nothing_to_compare_with(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.delenv("MERGEKIT_YAML", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--check", str(tmp_path / "none.json")]) == 0
    assert "mergekit-yaml is not on the PATH" in capsys.readouterr().out


def test_the_committed_figures_can_be_read() -> None:
    rows = read_rows(Path(__file__).parent / "peer_speed.json")
    assert {one.method for one in rows.values()} >= {"linear", "task_arithmetic", "dare_ties", "ties"}
