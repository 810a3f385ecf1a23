"""The page and the file of figures, from runs that are written here; and that the committed page is up to date."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from . import __main__ as peers
from .__main__ import begin, main
from .case import Case
from .page import page
from .results import Figures, Results, Row, read_results, write_results
from .timing import machine

HERE = Path(__file__).parent
DATE = "2026-11-30"


def row(group: str, label: str, **runs: list[Figures]) -> Row:
    return Row(group, label, DATE, runs)


def results(*rows: Row) -> Results:
    return Results("a machine, 2 cores", {"eigenmerge": "0.1.0", "mergekit": "0.1.5"}, rows)


def test_merges_have_median_spread_and_ratios() -> None:
    ours = [{"cpu": cpu, "wall": 3.0, "memory": 3.5e8} for cpu in (4.0, 5.0, 7.0)]
    theirs = [{"cpu": 10.0, "wall": 6.0, "memory": 7e8}]
    text = page(results(row("merges", "7 MB, linear", eigenmerge=ours, mergekit=theirs)))
    assert "| 7 MB, linear | 5.0 (4.0-7.0) | 10.0 | 0.50 | 3.0 | 6.0 | 0.50 | 0.35 | 0.70 | 0.50 |" in text
    assert f"a machine, 2 cores; {DATE}; eigenmerge 0.1.0, mergekit 0.1.5; files in the page cache." in text
    assert "## One layer" not in text and "## Planning" not in text, "what was not measured is not shown"
    alone = page(results(row("merges", "7 MB, linear", eigenmerge=ours)))
    assert "| 7 MB, linear | 5.0 (4.0-7.0) | - | - | 3.0 | - | - | 0.35 | - | - |" in alone


def test_every_group_has_its_section() -> None:
    start, first = {"cpu": 1.5, "wall": 1.0}, {"cpu": 31.5, "wall": 21.0, "weights": 4e8, "spectra": 2.4e9}
    second, top = {"cpu": 4.5, "wall": 3.0}, {"spectra": 3e8}
    ours, published = {"cpu": 7.0, "memory": 2e8}, {"cpu": 10.0, "memory": 1e9}
    read = {"bytes": 5e8, "requests": 0.0, "cpu": 0.05, "wall": 0.1}
    planned = {"tensors": 90427, "cpu": 27.0, "wall": 28.0, "memory": 5e8}
    text = page(
        results(
            row("layers", "8192 x 2048", eigenmerge=[ours], published=[published]),
            row("kept", "400 MB", start=[start], first=[first], second=[second], top=[top]),
            row("reading", "adapters, local disk", eigenmerge=[read]),
            row("planning", "DeepSeek-V3", eigenmerge=[planned]),
        )
    )
    for line in (
        "| 8192 x 2048 | 7.00 | 10.00 | 0.70 | 0.200 | 1.000 | 0.20 |",
        "| 400 MB | 31.5 | 21.0 | 4.5 | 3.0 | 1.5 | 1.0 | 10.0 | 10.0 |",
        "| 400 MB | 0.40 | 2.40 | 0.30 |",
        "| adapters, local disk | 500 | - | 0.050 | 0.100 |",
        "| DeepSeek-V3 | 90427 | 27.0 | 28.0 | 0.50 |",
    ):
        assert line in text


def test_dates_of_several_days_are_a_range() -> None:
    rows = [replace(row("merges", name), date=date) for name, date in (("a", "2026-11-28"), ("b", DATE))]
    assert "; 2026-11-28 to 2026-11-30; " in page(results(*rows))


def test_rows_are_replaced_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "figures.json"
    first, other = row("merges", "a", eigenmerge=[{"cpu": 1.23456}]), row("layers", "a", eigenmerge=[{"memory": 2e8}])
    again = row("merges", "a", eigenmerge=[{"cpu": 2.0}])
    write_results(file, results(first, other).with_row(again))
    assert read_results(file).rows == [again, other]
    assert json.loads(file.read_text())["machine"] == "a machine, 2 cores"


def test_some_rows_are_added_to_those_of_the_same_machine(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    other = row("merges", "a", eigenmerge=[{"cpu": 1.0}])
    write_results(file, Results(machine(), {"mergekit": "0.1.4", "torch": "1.0"}, [other]))
    some = begin(file, is_partial=True, is_page_alone=False, mergekit=None)
    assert some.rows == [other] and some.versions["mergekit"] == "0.1.4" and some.versions["torch"] != "1.0"
    everything = begin(file, is_partial=False, is_page_alone=False, mergekit=None)
    assert everything.rows == [] and "mergekit" not in everything.versions


def test_figures_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    write_results(file, results(row("merges", "a", eigenmerge=[{"cpu": 1.0}])))
    with pytest.raises(SystemExit, match="of another machine"):
        main(["--only", "layers", "--json", str(file)])


def test_the_page_of_a_measurement_is_that_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has four digits after the point: 0.390499 is shown as 0.390, and as 0.391 from the file."""
    figures = {"wall": 0.39046, "cpu": 0.390499, "bytes": 1.5e8, "requests": 45.0}
    case = Case("reading", "full experts, local disk", {"eigenmerge": lambda: figures}, 1)
    monkeypatch.setattr(peers, "GROUPS", {"reading": lambda _: iter([case])})
    measured, again, file = tmp_path / "measured.md", tmp_path / "again.md", tmp_path / "figures.json"
    main(["--json", str(file), "--page", str(measured)])
    main(["--only", "none", "--json", str(file), "--page", str(again)])
    assert measured.read_text() == again.read_text()


def test_the_committed_page_is_that_of_the_committed_figures(tmp_path: Path) -> None:
    main(["--only", "none", "--json", str(HERE / "figures.json"), "--page", str(tmp_path / "benchmarks.md")])
    assert (tmp_path / "benchmarks.md").read_text() == (HERE.parents[2] / "docs" / "benchmarks.md").read_text()
