"""The page: bounded in size, equal for equal reports, and no text from a model is markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from eigenmerge.core.steps.reporting.costs import Costs, TensorCost
from eigenmerge.core.steps.reporting.page import PAGE_MARK, report_page
from eigenmerge.core.steps.reporting.report import ExpertInLayer
from eigenmerge.core.steps.reporting.spectrum_curves import points_per_curve

from .examples import HOSTILE, curve, expert, layer, report


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_page_of_500_layers_and_16_experts_is_below_3_mb() -> None:
    points = points_per_curve(500)
    experts = tuple(expert(f"s3://bucket/experts/number-{n}", share=1 / 16) for n in range(16))
    inside = {n: ExpertInLayer(0.0625, 0.123, 0.456, -0.0123, 0.987) for n in range(16)}
    layers = [
        layer(
            f"model.layers.{n // 7}.mlp.weight_{n % 7}.weight",
            depth=n // 7,
            experts=inside,
            curves=(curve(points=points),),
        )
        for n in range(500)
    ]
    page = report_page(report(*layers, experts=experts))
    assert 500_000 < len(page.encode()) < 3_000_000
    assert report_page(report(*layers, experts=experts)) == page


def test_ten_thousand_curves_stay_bounded() -> None:
    """12 points each, and no rows of experts: 10,000 layers of a mixture take less than 4 MB."""
    inside = {n: ExpertInLayer(0.25, 0.123, 0.456, -0.0123, 0.987) for n in range(4)}
    curves = (curve(points=points_per_curve(10_000)),)
    layers = [layer(f"model.layers.{n}.w", experts=inside, curves=curves) for n in range(10_000)]
    assert len(report_page(report(*layers)).encode()) < 4_000_000


def test_names_are_text() -> None:
    """A name ends neither the element of data nor that of the title, and commands no terminal."""
    hostile = layer(HOSTILE, notes=(HOSTILE,), why=HOSTILE, row=HOSTILE)
    page = report_page(
        report(
            hostile,
            title=HOSTILE,
            base=HOSTILE,
            method=HOSTILE,
            recipe={HOSTILE: HOSTILE},
            plan_warnings=(HOSTILE,),
            experts=(expert(HOSTILE), expert("b")),
        )
    )
    assert "<img" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("</script>") == 3
    found = data_of(page)
    name = found["layers"][0][0]
    assert name.startswith("</script><img") and "\x1b" not in name and found["experts"][0]["name"] == name


def test_costs_are_on_the_page_where_they_are_known() -> None:
    costs = Costs(
        {"seconds": 1.5, "decompositions_computed": 3, "decompositions_reused": 4},
        "t",
        "2026-01-01T10:00:00+00:00",
        9.25,
        1024,
        {},
    )
    timed = replace(layer(), cost=TensorCost(0.12345, "computed"))
    page = report_page(report(timed, costs=costs))
    facts = dict(data_of(page)["facts"])
    assert facts["decompositions"] == "3 computed, 4 reused" and facts["last run"] == "1.5 s"
    assert facts["finished"] == "2026-01-01 10:00:00 UTC"
    assert data_of(page)["layers"][0][-2:] == [0.123, "computed"]
    without = dict(data_of(report_page(report()))["facts"])
    assert not {"finished", "last run", "decompositions", "computing"} & without.keys()


def test_nothing_is_loaded() -> None:
    """The policy forbids it; and no element of the page has an address."""
    page = report_page(report())
    assert PAGE_MARK in page[:500] and "default-src 'none'" in page
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href|url)\s*[=(]", outside)
