"""A manifest that was changed: numbers that do not fit each other, or are too large, are not shown, and end nothing."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.output.read_manifest import Manifest
from eigenmerge.core.steps.reading.run_records import RunRecords
from eigenmerge.core.steps.reporting.page import report_page
from eigenmerge.core.steps.reporting.report import make_report
from eigenmerge.core.steps.reporting.warn import report_warnings

from .test_page import data_of

MEASURES: dict[str, Any] = {
    "delta": 1.0,
    "norms": [1.0, 2.0],
    "before": [1.0, 1.0],
    "after": [0.5, 0.25],
    "cosines": [0.5, 0.9],
    "with_others": [0.1, 0.1],
}


def manifest(measures: dict[str, Any], **facts: Any) -> Manifest:
    models = [{"name": name, "fingerprint": name} for name in ("math", "code")]
    tensor = {
        "name": "model.layers.0.mlp.up_proj.weight",
        "shape": [4, 3],
        "dtype": "F32",
        "action": "merge",
        "method": "linear",
        "sha256": "0" * 64,
        "weights": [1.0, 1.0],
        "expert_order": 0,
        "measures": MEASURES | measures,
    }
    content: dict[str, Any] = {
        "format": 1,
        "eigenmerge": "0.1.0",
        "run_key": "ab" * 32,
        "recipe": {"merge_method": "linear", "models": [{"model": "math"}, {"model": "code"}]},
        "base": None,
        "experts": models,
        "expert_orders": [[0, 1]],
        "files": [],
        "side_files": {},
        "tensors": [tensor],
    }
    return Manifest.model_validate(content | facts)


def test_measures_that_fit() -> None:
    found = make_report(manifest({}, expert_overlap=[[1.0, 0.5], [0.5, 1.0]]), RunRecords(""))
    (layer,) = found.layers
    assert [one.share for one in layer.experts.values()] == pytest.approx([0.2, 0.8])
    assert [one.total.interference for one in found.experts] == [0.5, 0.25] and found.interference == 0.375
    assert found.overlap is not None


@pytest.mark.parametrize(
    "measures",
    [
        {"norms": [1.0]},
        {"before": [1.0]},
        {"after": []},
        {"cosines": [1.0, 1.0, 1.0]},
        {"with_others": []},
        {"alignment": [1.0]},
        {"norms": [1e300, 1.0]},
        {"delta": 1e300},
        {"before": [0.0, 0.0]},
        {"norms": [0.0, 0.0]},
    ],
    ids=str,
)
def test_measures_that_do_not(measures: dict[str, Any]) -> None:
    found = make_report(manifest(measures, expert_overlap=[[1.0]]), RunRecords(""))
    assert found.overlap is None
    data = data_of(report_page(found))
    assert data["layers"][0][0] == "model.layers.0.mlp.up_proj.weight" and isinstance(report_warnings(found), list)


@pytest.mark.parametrize("order", [[0, 7], [-1, 0], [0]])
def test_orders_of_experts_that_are_not_there(order: list[int]) -> None:
    found = make_report(manifest({}, expert_orders=[order]), RunRecords(""))
    assert "layers" in data_of(report_page(found))
