"""LoRA experts in factor space against the dense path: what the documentation promises, measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lora_factor_space import compare

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


@needs_proc
@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_eight_experts_of_a_4096_layer() -> None:
    found = compare("swudi_a", 4096, 16, 8, threads=1)
    for form, case in found["cases"].items():
        print(f"{form}: {case.seconds:.2f} s, {case.peak_bytes / 1e6:.0f} MB")
    assert found["faster"] >= 20 and found["smaller"] >= 10
    assert found["error"] < 1e-5


@needs_proc
def test_a_small_layer_shows_the_same() -> None:
    """What can be said in a second: the results agree, and factor space is the smaller one."""
    found = compare("swudi_a", 512, 4, 4, threads=1)
    assert found["error"] < 1e-5
    assert found["faster"] > 2
