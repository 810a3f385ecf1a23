"""DC-Merge on the golden experts, against the steps of its published codes in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenmerge.core.numerics.tensor_level import merge_task_vectors

from .published_dc_merge import published_dc_merge

AGREEMENT = 1e-8
AGREEMENT_FLOAT32 = 1e-5
#: Of other layers the published result is arbitrary: experts of low rank, identical ones, ties of a single one.
FULL_RANK = ["qkv_fused_k3", "sq_full_k4", "tall_full_k3", "unequal_scale_k4", "wide_full_k5"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"density": 0.05},
    {"rank": 4, "smoothing": "average", "density": 0.01},
    {"rank": 4, "smoothing": "linear", "density": 0.01},
]


@pytest.mark.parametrize("layer", FULL_RANK)
@pytest.mark.parametrize("parameters", SETTINGS)
def test_published_steps_are_reproduced(golden, relative_error, layer, parameters):
    vectors = golden.experts(layer)
    expected = published_dc_merge(vectors, **parameters)
    assert relative_error(merge_task_vectors(vectors, "dc_merge", **parameters), expected) < AGREEMENT
    single = merge_task_vectors(golden.experts(layer, torch.float32), "dc_merge", **parameters)
    assert relative_error(single, expected) < AGREEMENT_FLOAT32
