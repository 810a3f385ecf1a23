"""The models, the page and the plot of the growth benchmark, from points that are written here."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.read_recipe import read_recipe

sys.path.insert(0, str(Path(__file__).parent))
from growth import Point, axes, full_recipe, main
from models import Size, write_models
from page import memory_claim, write_page

POINTS = Path(__file__).parent / "growth.json"


def content(*points: Point) -> dict[str, Any]:
    return {
        "machine": "a machine",
        "date": "2026-11-30",
        "versions": {"eigenmerge": "0.1.0", "torch": "2.13.0"},
        "points": [asdict(one) for one in points],
    }


def point(axis: str, value: int, peak: float, method: str = "linear") -> Point:
    return Point(axis, method, value, 5.0 + value, 4.0, peak)


def test_the_models_are_merged_and_adapters_are_found(tmp_path: Path) -> None:
    size = Size(64, 80, 1, vocabulary=32, kv=32)
    write_models(tmp_path, size, 2, 2, rank=2)
    base, expert = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "expert0"))
    assert set(base) == set(size.shapes()) and not torch.equal(base["model.norm.weight"], expert["model.norm.weight"])
    change = (expert["model.layers.0.mlp.down_proj.weight"] - base["model.layers.0.mlp.down_proj.weight"]).float()
    assert 0 < change.norm() < 0.5 * base["model.layers.0.mlp.down_proj.weight"].float().norm()
    linear = merge_run(
        read_recipe(full_recipe(tmp_path, "linear", 2)), str(tmp_path / "out"), store=str(tmp_path / "s")
    )
    models = [{"model": f"{tmp_path}/base+{tmp_path}/adapter{index}"} for index in range(2)]
    recipe = read_recipe({"merge_method": "swudi_a", "base_model": str(tmp_path / "base"), "models": models})
    adapted = merge_run(recipe, str(tmp_path / "lora"), store=str(tmp_path / "s"))
    assert (linear.num_tensors, adapted.num_tensors) == (len(base), len(base))


def test_the_page_says_where_memory_grows(tmp_path: Path) -> None:
    flat = [point(axis, value, 400.0 + value) for axis in ("experts", "layers") for value in (1, 64)]
    growing = [point("experts", value, 400.0 * value, "swudi_a") for value in (1, 2)]
    kept = [point("kept", 0, 9.0, method) for method in ("linear", "swudi_a", "swudi")]
    points = [*flat, *growing, point("width", 128, 400.0), *kept, Point("lora", "swudi_a", 100, 200.0, 120.0, 2048.0)]
    claim = memory_claim([asdict(one) for one in points])
    assert "not flat in experts for swudi_a (1 to 2: x2.00)" in claim
    assert "flat in experts for linear (1 to 64: x1.16), not flat" in claim
    write_page(tmp_path / "growth.md", content(*points))
    text = (tmp_path / "growth.md").read_text()
    assert "| 1 | 6.0 | 4.0 | 401 | 6.0 | 4.0 | 400 |" in text
    assert "200 CPU seconds, 120 s, 2.00 GB" in text and "Another filter" in text
    drawn = (tmp_path / "images" / "growth.svg").read_text()
    assert "peak memory, MB" in drawn and "input dimensions D2" in drawn
    write_page(tmp_path / "growth.md", content(*points))
    assert (tmp_path / "images" / "growth.svg").read_text() == drawn


def test_the_committed_page_is_that_of_the_committed_points(tmp_path: Path) -> None:
    stored = json.loads(POINTS.read_text())
    found = {(one["axis"], one["value"]) for one in stored["points"]}
    assert found >= {(axis, value) for axis, values in axes().items() for value, _, _ in values}
    main(["--only", "none", "--json", str(POINTS), "--page", str(tmp_path / "growth.md")])
    committed = Path(__file__).parents[3] / "docs" / "growth.md"
    assert (tmp_path / "growth.md").read_text() == committed.read_text()
