"""`eigenmerge methods`: one card per method, with the ranges of its parameters."""

from __future__ import annotations

import json

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.numerics.registry import all_methods
from eigenmerge.deployments.cli.commands.methods_command import methods


def test_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    methods("swudi_a")
    first, *parameters = capsys.readouterr().out.splitlines()
    assert first.startswith("swudi_a: ") and first.endswith("[spectral; arXiv:2606.07289]")
    assert all(line.startswith("    ") and line.endswith(")") for line in parameters)
    assert any(line.startswith("    exp_time: ") and "(default 300.0, at least 0)" in line for line in parameters)
    assert any(line.startswith("    weight (per expert): ") for line in parameters)


def test_all_methods(capsys: pytest.CaptureFixture[str]) -> None:
    methods(as_json=True)
    cards = json.loads(capsys.readouterr().out)
    assert {card["name"] for card in cards} >= set(all_methods())
    assert {card["kind"] for card in cards if "kind" in card} == {"spectral", "direct"}


def test_an_unknown_method() -> None:
    with pytest.raises(RecipeError, match="unknown merge method 'swudia'; did you mean 'swudi"):
        methods("swudia")
