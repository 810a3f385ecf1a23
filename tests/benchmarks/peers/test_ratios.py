"""Which ratios a check compares, and when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from .__main__ import main
from .ratios import not_compared, ratios, second_run_ratio, worse_ratios
from .results import Results, Row

FIGURES = Path(__file__).parent / "figures.json"


def merge(ours: float, theirs: float | None = 10.0, label: str = "7 MB") -> Row:
    runs = {"eigenmerge": [{"cpu": cpu, "wall": 4.0, "memory": 2e8} for cpu in (ours, ours + 1)]}
    if theirs is not None:
        runs["mergekit"] = [{"cpu": theirs, "wall": 8.0, "memory": 4e8}]
    return Row("merges", label, "2026-11-30", runs)


def kept(start: float, first: float, second: float) -> Row:
    runs = {name: [{"cpu": cpu}] for name, cpu in (("start", start), ("first", first), ("second", second))}
    return Row("kept", "70 MB", "2026-11-30", runs)


def reference(*rows: Row) -> Results:
    return Results("a machine", {}, rows)


def test_only_ratios_that_became_a_fifth_worse_are_reported() -> None:
    assert worse_ratios([merge(6.0)], reference(merge(5.0))) == []
    assert worse_ratios([merge(6.2)], reference(merge(5.0))) == [
        "merges, 7 MB: CPU is 0.67 of mergekit's, and was 0.55"
    ]
    assert worse_ratios([merge(3.0)], reference(merge(5.0))) == [], "better"
    assert worse_ratios([merge(12.0, theirs=20.0)], reference(merge(5.0))) == [], "the machine is half as fast"


def test_a_layer_is_compared_with_the_published_algorithm() -> None:
    def layer(memory: float) -> Row:
        runs = {"eigenmerge": [{"cpu": 1.0, "memory": memory}], "published": [{"cpu": 2.0, "memory": 4e8}]}
        return Row("layers", "2048 x 2048", "2026-11-30", runs)

    assert worse_ratios([layer(2e8)], reference(layer(1e8))) == [
        "layers, 2048 x 2048: memory is 0.5 of the published algorithm's, and was 0.25"
    ]


def test_the_start_is_not_counted_in_a_second_run() -> None:
    assert second_run_ratio(kept(1.5, 31.5, 4.5)) == pytest.approx(0.1)
    assert second_run_ratio(kept(1.5, 31.5, 1.4)) is None, "shorter than the start"
    (line,) = worse_ratios([kept(1.5, 31.5, 6.0)], reference(kept(1.5, 31.5, 4.5)))
    assert line == "kept, 70 MB: CPU without the start is 0.15 of the first run's, and was 0.1"


def test_what_cannot_be_compared_is_said() -> None:
    rows = [merge(5.0), merge(5.0, theirs=None, label="400 MB"), merge(5.0, label="new")]
    known = reference(merge(5.0), merge(5.0, label="400 MB"))
    assert worse_ratios(rows, known) == []
    assert not_compared(rows, known) == [f"merges, {label}: nothing to compare with" for label in ("400 MB", "new")]
    assert list(ratios(Row("planning", "a plan", "2026-11-30", {"eigenmerge": [{"cpu": 1.0}]}))) == []


def test_a_check_without_mergekit_says_so(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.delenv("MERGEKIT_YAML", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--check", str(FIGURES), "--only", "merges"]) == 0
    assert "mergekit-yaml is not on the PATH" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "[]", '{"machine": "m", "versions": {}, "rows": [{"group": "merges"}]}'])
def test_a_check_needs_figures(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "figures.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match=r"figures\.json: no"):
        main(["--check", str(file)])
