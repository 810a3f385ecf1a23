"""`eigenmerge methods`: one card per method, with the ranges of its parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.registry import all_methods
from eigenmerge.deployments.cli.commands.methods_command import methods

from .conftest import Terminal


def test_one_method(capsys: pytest.CaptureFixture[str], terminal: Terminal) -> None:
    terminal.open(80)
    methods("swudi_a")
    text = capsys.readouterr().out
    first, kind, *lines = text.splitlines()
    assert first.startswith("swudi_a (also called aswudi): ") and max(map(len, text.splitlines())) <= 80
    assert kind.lstrip().startswith("spectral: ") or lines[0].lstrip().startswith("spectral: ")
    joined = " ".join(text.split())
    assert "source: arXiv:2606.07289; docs/methods/swudi_a.md" in joined
    assert "exp_time: time t of the exponential filter 1 - exp(-t lambda) (default 300.0, at least 0)" in joined
    assert "weight (per expert): factor on" in joined


def test_the_list_fits_on_a_screen(capsys: pytest.CaptureFixture[str], terminal: Terminal) -> None:
    terminal.open(80)
    methods()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) <= 80
    shown = [word for line in lines for word in line.split()]
    assert all(shown.count(name) == 1 for name in all_methods())
    methods(long=True)
    text = capsys.readouterr().out
    assert all(f"\n{name}" in f"\n{text}" for name in all_methods()) and "  rank_rule: " in text


def test_every_built_in_method_has_the_page_that_is_named() -> None:
    pages = Path(__file__).parents[4] / "docs" / "methods"
    assert all((pages / f"{name}.md").is_file() for name, method in all_methods().items() if method.package is None)


def test_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    methods(as_json=True)
    cards = json.loads(capsys.readouterr().out)
    assert {card["name"] for card in cards} >= set(all_methods())
    assert {card["kind"] for card in cards if "kind" in card} == {"spectral", "direct"}


def test_an_unknown_method() -> None:
    with pytest.raises(RecipeError, match="unknown merge method 'swudia'; did you mean 'swudi"):
        methods("swudia")
