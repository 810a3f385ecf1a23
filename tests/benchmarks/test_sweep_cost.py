"""A sweep of 20 settings costs at most three merges: the decompositions are shared."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


@pytest.mark.benchmark
def test_twenty_settings_cost_at_most_three_merges(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).with_name("sweep_cost.py")))
    seconds = script["measure"](tmp_path, script["Sizes"]())
    print({name: round(value, 1) for name, value in seconds.items()})
    for name in ("20 settings, without data", "20 settings, every tensor"):
        assert seconds[name] <= 3 * seconds["one merge"], name
