"""Reports of shards come back from JSON as they were, and nothing else is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.cache.reports import ShardReport

from .examples import tensor_report

REPORT = ShardReport(
    index=2,
    part_key="parts/x.safetensors",
    num_bytes=100,
    header_bytes=40,
    sha256="00",
    etag="",
    seconds=1.5,
    bytes_read=30,
    tensors=(
        tensor_report("a", "computed"),
        tensor_report("b", "reused"),
        tensor_report("c", "computed"),
        replace(tensor_report("n"), rank=3, energy=0.5, notes=("note",), truncation_error=1e-3),
    ),
    notes=("damaged; made again",),
)


def as_json(report: ShardReport) -> dict[str, Any]:
    return json.loads(json.dumps(report.to_dict()))


def test_json_round_trip() -> None:
    assert ShardReport.from_dict(as_json(REPORT)) == REPORT


def test_a_report_without_later_fields_is_read() -> None:
    """Fields with a default may be missing: an earlier version did not write them."""
    content = as_json(REPORT)
    del content["kept_bytes_read"], content["notes"], content["tensors"][0]["truncation_error"]
    assert ShardReport.from_dict(content) == replace(REPORT, notes=())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("header_bytes", 101),
        ("header_bytes", -1),
        ("num_bytes", "many"),
        ("tensors", None),
        ("part_key", 3),
        ("tensors", [{"name": "a"}]),
    ],
)
def test_other_content_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError):
        ShardReport.from_dict(as_json(REPORT) | {field: value})


def test_decompositions_of_a_part_that_was_made() -> None:
    assert (REPORT.decompositions_computed, REPORT.decompositions_reused) == (2, 1)


def test_a_part_that_was_found_computed_nothing() -> None:
    found = replace(REPORT, reused=True)
    assert (found.decompositions_computed, found.decompositions_reused) == (0, 3)
