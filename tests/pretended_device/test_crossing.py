"""Bytes that cross between host and device in a merge, beside those of the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eigenmerge import plan
from eigenmerge.core.numerics.interference.expert_probes import num_probes
from eigenmerge.core.planning.cost.crossing import bytes_to_device, bytes_to_host

from .device_merges import NORM, WEIGHT, merge_on_device, save_layer

SHAPE = (192, 384)
SMALL = 16 * (SHAPE[0] + SHAPE[1]) * 8  # a few vectors of numbers: variances, energies, values

CASES: dict[str, dict[str, Any]] = {
    "spectra kept": {"merge_method": "swudi"},
    "spectra in part": {"merge_method": "swudi", "spectra": "top"},
    "no spectra": {"merge_method": "swudi", "spectra": "none"},
    "both sides": {"merge_method": "swudi", "parameters": {"side": "both"}},
    "sums kept": {"merge_method": "wudi_pinv", "keep_sums": True},
    "calibrated": {"merge_method": "task_arithmetic", "calibration": {"svc": {}}},
    "elementwise": {"merge_method": "ties", "dtype": "bfloat16"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_states_the_bytes_that_cross(pipeline: Callable[..., Any], tmp_path: Path, case: str) -> None:
    recipe = {**save_layer(tmp_path / "models", SHAPE, dtype=torch.bfloat16), **CASES[case]}
    planned = {t.name: t for shard in plan(recipe, device="cuda:0").shards for t in shard.tensors}
    _, counts = merge_on_device(pipeline, recipe, tmp_path / "out")
    # Of each expert and of the merged delta, random vectors and their images over both sides, float32.
    probes = 4 * (3 + 1) * num_probes(3) * sum(SHAPE) * 4
    for name in (WEIGHT, NORM):
        tensor, found = planned[name], counts.tensors[name]
        added = probes + SMALL if name == WEIGHT else SMALL
        assert bytes_to_device(tensor) <= found.to_device <= bytes_to_device(tensor) + added
        assert bytes_to_host(tensor) <= found.to_host <= bytes_to_host(tensor) + added


def test_copied_tensors_stay_on_the_host(pipeline: Callable[..., Any], tmp_path: Path) -> None:
    recipe = {**save_layer(tmp_path / "models"), "merge_method": "swudi", "vectors": "base"}
    (tensor,) = [t for shard in plan(recipe, device="cuda:0").shards for t in shard.tensors if t.name == NORM]
    _, counts = merge_on_device(pipeline, recipe, tmp_path / "out")
    assert (bytes_to_device(tensor), bytes_to_host(tensor)) == (0, 0)
    assert (counts.tensors[NORM].copies, counts.tensors[NORM].operations) == (0, 0)
