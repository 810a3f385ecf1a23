"""A sweep of 20 settings costs little more than its decompositions; each candidate reads the spectra once more."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


@pytest.mark.benchmark
def test_twenty_settings_of_a_small_model(tmp_path: Path) -> None:
    """Measured on 8M parameters: 1.04 merges without data, 3.5 where the evaluator reads every tensor."""
    script = runpy.run_path(str(Path(__file__).with_name("sweep_cost.py")))
    seconds = script["measure"](tmp_path, script["Sizes"]())
    print({name: round(value, 1) for name, value in seconds.items()})
    assert seconds["20 settings, without data"] <= 1.5 * seconds["one merge"]
    assert seconds["20 settings, every tensor"] <= 5 * seconds["one merge"]
