"""The statistics and the rows of the benchmark on real experts; the benchmark itself is `make experts`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.recipe.recipe import recipe_from_mapping

sys.path.insert(0, str(Path(__file__).parent / "real_experts"))
from combine import COMBINATIONS, Sources, interference_left
from larv import block_scores, conflict, continuous_scale, effective_rank, scales_of_tensors, tiered_scales
from page_tables import TABLE, write
from rows import ROWS
from shares import SetAnswers, difference, share_kept

MODELS = {"base_model": "base", "models": ["a", "b", "c"]}


def answers(seed: int, items: int = 300) -> SetAnswers:
    """Return two tasks whose base is right on 60% of the items, the experts on 90%, the merges on 70% and 80%."""
    generator = torch.Generator().manual_seed(seed)
    easiness = {task: torch.rand(items, generator=generator) for task in ("one", "two")}

    def right(share: float) -> dict[str, torch.Tensor]:
        noise = {task: 0.2 * torch.rand(items, generator=generator) for task in easiness}
        return {task: (value + noise[task] < share + 0.1).double() for task, value in easiness.items()}

    base, experts = right(0.6), right(0.9)
    return SetAnswers(base, experts, {"low": right(0.7), "high": right(0.8), "base": base, "experts": experts})


def test_the_base_keeps_nothing_and_the_experts_keep_all_without_error() -> None:
    sets = [answers(0), answers(1)]
    assert (share_kept(sets, "base").value, share_kept(sets, "base").error) == (0.0, 0.0)
    assert share_kept(sets, "experts").value == pytest.approx(1.0, abs=1e-12)
    assert share_kept(sets, "experts").error == pytest.approx(0.0, abs=1e-12)
    same = difference(sets, "low", "low")
    assert (same.value, same.error) == (0.0, 0.0)


def test_the_error_over_items_is_that_of_drawing_the_items_again() -> None:
    found = answers(2)
    estimate = share_kept([found], "high")
    generator = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(400):
        chosen = {task: torch.randint(len(v), (len(v),), generator=generator) for task, v in found.base.items()}
        again = SetAnswers(
            {task: found.base[task][index] for task, index in chosen.items()},
            {task: found.experts[task][index] for task, index in chosen.items()},
            {"high": {task: found.rows["high"][task][index] for task, index in chosen.items()}},
        )
        drawn.append(again.share("high"))
    # A standard deviation of 400 draws has a relative error of 1 / sqrt(800) = 3.5%; 15% is four of these.
    assert torch.tensor(drawn).std().item() == pytest.approx(estimate.error, rel=0.15)


def test_what_both_rows_have_in_common_is_no_error_of_their_difference() -> None:
    sets = [answers(seed) for seed in range(3)]
    paired = difference(sets, "high", "low")
    assert paired.value == pytest.approx(share_kept(sets, "high").value - share_kept(sets, "low").value)
    independent = math.hypot(share_kept(sets, "high").error, share_kept(sets, "low").error)
    assert 0 < paired.error < independent


def test_sets_that_differ_enlarge_the_error() -> None:
    first = answers(4)
    worse = SetAnswers(first.base, first.experts, {"high": first.rows["low"]})
    alone, together = share_kept([first], "high"), share_kept([first, worse], "high")
    spread = abs(first.share("high") - worse.share("high")) / 2
    assert together.error >= spread > 0
    assert together.value == pytest.approx((alone.value + worse.share("high")) / 2)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.of])
def test_every_row_is_a_valid_recipe(name: str) -> None:
    keys: dict[str, Any] = {**MODELS, **ROWS[name].keys}
    assert recipe_from_mapping(keys).ineffective_parameters == []


def test_rows_that_combine_others_name_them() -> None:
    for row in ROWS.values():
        assert all(name in ROWS and "float32" in ROWS[name].stored for name in row.of)
        assert bool(row.of) == bool(row.combine) and (not row.combine or row.combine in COMBINATIONS)


def test_the_mean_with_the_norms_of_its_parts() -> None:
    one, two = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])

    def combined(name: str, *deltas: torch.Tensor) -> torch.Tensor:
        return COMBINATIONS[name](Sources({"w": one}, [{"w": delta} for delta in deltas], []))["w"]

    kept = combined("norms kept", one, two)
    assert kept.norm().item() == pytest.approx(2.0)
    torch.testing.assert_close(kept / kept.norm(), (one + two) / (one + two).norm())
    assert combined("norms kept", one, -one).norm() == 0
    assert torch.equal(combined("smaller norm", one, two), two)
    assert torch.equal(combined("larger norm", one, two), one)


def test_larv_multiplies_the_merged_delta(tmp_path: Path) -> None:
    """Of two blocks with equal scores but for their depth, the first has the lowest tier and the second the next."""
    base = {name: torch.eye(5) for name in ("layer.0.w", "layer.1.w", "embed")}
    save_file({name: 2 * weight for name, weight in base.items()}, tmp_path / "model.safetensors")
    delta = {name: torch.rand(5, 5) for name in base}
    found = COMBINATIONS["larv tiers"](Sources(base, [delta], [tmp_path]))
    for name, factor in (("layer.0.w", 0.5), ("layer.1.w", 1.0), ("embed", 1.0)):
        assert torch.equal(found[name], factor * delta[name])


def test_the_delta_with_the_least_interference_is_that_of_the_expert(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base, expert, other = (torch.randn(4, 6, generator=generator) for _ in range(3))
    save_file({"w": base + expert, "v": base[0]}, tmp_path / "model.safetensors")
    merged = [{"w": delta, "v": torch.zeros(6)} for delta in (other, expert, torch.zeros(4, 6))]
    found = COMBINATIONS["least interference"](Sources({"w": base, "v": base[0]}, merged, [tmp_path]))
    assert torch.equal(found["w"], expert)
    assert interference_left(expert, [expert]) == pytest.approx(0.0, abs=1e-10)
    assert interference_left(torch.zeros(4, 6), [expert]) == pytest.approx(2.0)


def test_larvs_scores() -> None:
    """Deep blocks with few directions and no conflict have a high score; factors follow the scores."""
    equal = torch.eye(8)
    first = torch.zeros(8, 8)
    first[0, 0] = 1.0
    turned = torch.diag(torch.ones(7), 1) - torch.diag(torch.ones(7), -1)
    assert effective_rank(equal) == pytest.approx(8.0) and effective_rank(first) == pytest.approx(1.0)
    assert conflict(equal, first) == 0.0  # symmetric matrices commute with 1
    assert conflict(equal, turned) == pytest.approx(2.0 / 8**0.5)
    base = {f"layers.{block}.w": equal for block in range(3)} | {"embed": equal}
    vectors = {"layers.0.w": turned, "layers.1.w": equal, "layers.2.w": first}
    scores = block_scores(base, lambda name: [vectors[name], 2 * vectors[name]])
    # z of the conflicts 1/sqrt(2), 0, 0 is sqrt(2) and -1/sqrt(2), twice; softplus of the latter is 0.40087
    assert scores[1] == pytest.approx((2 / 3) ** 0.5 / 1.40087, rel=1e-4)
    assert scores[2] == pytest.approx(8.0 / 1.40087, rel=1e-4)
    assert scores[0] < scores[1] < scores[2]
    scales = scales_of_tensors(base, scores, tiered_scales((0.5, 1.0, 1.5)))
    assert scales == {"layers.0.w": 0.5, "layers.1.w": 1.0, "layers.2.w": 1.5}
    assert continuous_scale([1.0, 100.0, -100.0]) == pytest.approx([1.0, 1.5, 0.5])


def test_tables_are_written_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- table: sides -->\nold\n<!-- end of table -->\nb\n<!-- table: larv -->\n<!-- end of table -->\n"
    )
    write(page, {"sides": "| 1 |", "larv": "| 2 |"})
    assert page.read_text().split("\n")[2::4] == ["| 1 |", "| 2 |"]
    written = page.read_text()
    write(page, {"sides": "| 1 |", "larv": "| 2 |"})
    assert page.read_text() == written


def test_every_table_of_the_pages_is_one_of_the_report() -> None:
    docs = Path(__file__).parents[2] / "docs"
    names = {
        found[2] for page in ("real-experts.md", "sides.md") for found in TABLE.finditer((docs / page).read_text())
    }
    assert names == {"experts", "methods", "sides", "choices", "factors", "larv", "tried", "sweep", "rounded"}
