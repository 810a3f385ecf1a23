"""Filter times of aligned layers from their largest eigenvalues."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenmerge.core.numerics.interference.exp_times import align_exp_times

LARGEST = {"a": 0.1, "b": 0.4, "c": 1.6}


def test_geometric_mean_is_the_reference() -> None:
    assert align_exp_times(300.0, LARGEST, 0.5) == pytest.approx({"a": 600.0, "b": 300.0, "c": 150.0})
    assert align_exp_times(300.0, LARGEST, 0.0) == pytest.approx(dict.fromkeys("abc", 300.0))


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(1e-7, 100.0), min_size=1, max_size=8))
def test_full_alignment_filters_every_layer_to_the_same_depth(largest: dict[str, float]) -> None:
    times = align_exp_times(1300.0, largest, 1.0)
    depths = [times[name] * largest[name] for name in largest]
    assert max(depths) == pytest.approx(min(depths), rel=1e-9)
    # the mean of log t does not change
    assert math.fsum(math.log(t) for t in times.values()) / len(times) == pytest.approx(math.log(1300.0))


def test_layers_whose_experts_are_zero_keep_the_time() -> None:
    assert align_exp_times(300.0, {**LARGEST, "zero": 0.0}, 0.5) == pytest.approx(
        {"a": 600.0, "b": 300.0, "c": 150.0, "zero": 300.0}
    )
    assert align_exp_times(300.0, {"zero": 0.0}, 0.5) == {"zero": 300.0}
    assert align_exp_times(300.0, {}, 0.5) == {}
    assert align_exp_times(300.0, {"alone": 0.7}, 2.0) == pytest.approx({"alone": 300.0})
