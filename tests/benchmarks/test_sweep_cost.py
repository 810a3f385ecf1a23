"""A sweep of 20 settings costs its decompositions, and one product of matrices for each layer and setting."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


@pytest.mark.benchmark
def test_twenty_settings_of_a_small_model(tmp_path: Path) -> None:
    """Measured on 8M parameters: 0.8 merges without data, 1.9 where the evaluator reads every tensor."""
    script = runpy.run_path(str(Path(__file__).with_name("sweep_cost.py")))
    seconds = script["measure"](tmp_path, script["Sizes"]())
    print({name: round(value, 1) for name, value in seconds.items()})
    assert seconds["20 settings, without data"] <= 1.5 * seconds["one merge"]
    assert seconds["20 settings, every tensor"] <= 3 * seconds["one merge"]
    assert seconds["20 settings, a directory each"] <= 3 * seconds["one merge"]
