"""`eigenmerge compare`: two merges, two runs, a merge and its base, models that do not fit, and the page."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.errors import CheckpointError, DestinationError, RecipeError
from eigenmerge.deployments.cli.commands.compare_command import compare

from ....small_models import save_model
from .conftest import Merges, Terminal

UP = "model.layers.1.mlp.up_proj.weight"


def as_data(capsys: pytest.CaptureFixture[str], *names: str, **options: Any) -> dict[str, Any]:
    compare(*names, as_json=True, **options)
    return json.loads(capsys.readouterr().out)


def test_two_merges(merges: Merges, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_data(capsys, merges.first, merges.second)
    one, other = (load_file(f"{place}/model.safetensors")[UP].double() for place in (merges.first, merges.second))
    (row,) = [row for row in found["tensors"] if row["name"] == UP]
    assert row["difference"] == pytest.approx(float((other - one).norm() / one.norm()))
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert row["angle"] == pytest.approx(float(torch.rad2deg(torch.acos(torch.tensor(cosine)))), rel=1e-3)
    assert found["recipe_keys"] == {"parameters.rank_ratio": {"a": 0.85, "b": 0.5}} and found["inputs"] == []
    ranks = {row["name"]: (row["a"], row["b"]) for row in found["ranks"]}
    assert ranks[UP] == (28, 16) and not any("q_proj" in name for name in ranks)  # a rule sets their rank
    terminal.open(80)
    compare(merges.first, merges.second)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or str(merges.root) in line for line in lines)
    assert "  parameters.rank_ratio: 0.85 -> 0.5" in lines
    assert lines[lines.index("layers that moved most (2 of 2)") + 2].split()[-1].startswith("model.layers.")


def test_two_runs_of_a_store(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [
        json.loads(Path(place, "eigenmerge_manifest.json").read_text())["run_key"]
        for place in (merges.first, merges.second)
    ]
    found = as_data(capsys, keys[0][:8], keys[1], store=merges.store)
    assert found["recipe_keys"] and found["whole"] == as_data(capsys, merges.first, merges.second)["whole"]
    with pytest.raises(RecipeError, match=r"'ffffffffff': the store .* has no run with this beginning"):
        compare("ffffffffff", keys[0], store=merges.store)


def test_a_merge_and_its_base(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    compare(merges.base, merges.first)
    text = capsys.readouterr().out
    assert "base: full model" in text and "0 equal, 21 differ" in text and "recipe" not in text
    changes = as_data(capsys, merges.first, merges.second, base=merges.base)
    assert changes["whole"]["difference"] > 10 * as_data(capsys, merges.first, merges.second)["whole"]["difference"]
    with pytest.raises(CheckpointError, match="--base"):
        compare(merges.first, merges.second, base=str(make_other(merges)))


def test_many_keys_of_the_recipe_are_counted(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    second = Path(merges.root / "changed")
    shutil.copytree(merges.second, second)
    manifest = second / "eigenmerge_manifest.json"
    content = json.loads(manifest.read_text())
    content["recipe"]["rules"] = [{"match": f"*.{number}.*", "action": "copy"} for number in range(10)]
    manifest.write_text(json.dumps(content))
    compare(merges.first, str(second))
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("recipe")
    assert lines[start + 1] == "  parameters.rank_ratio: 0.85 -> 0.5" and lines[start + 11].startswith("  and ")
    assert lines[start + 11].endswith(" other keys; --json and --html list all") and len(lines) == start + 12
    keys = as_data(capsys, merges.first, str(second))["recipe_keys"]
    assert lines[start + 11].split()[1] == str(len(keys) - 10)


def make_other(merges: Merges) -> Path:
    """The base with a larger vocabulary, one tensor less and one more."""
    tensors = load_file(f"{merges.base}/model.safetensors")
    del tensors[UP]
    tensors["model.embed_tokens.weight"] = torch.zeros(52, 32)
    tensors["score.weight"] = torch.ones(2, 32)
    return save_model(merges.root / "other", tensors)


def test_models_that_do_not_fit(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    compare(merges.base, str(make_other(merges)))
    text = capsys.readouterr().out
    assert "22 tensors: 19 equal, 0 differ, 1 other shape, 1 only in A, 1 only in B" in text
    assert "  model.embed_tokens.weight: A 50x32, B 52x32" in text
    assert f"only in A (1)\n  {UP}: 64x32" in text and "only in B (1)\n  score.weight: 2x32" in text


class Tables(HTMLParser):
    """Cells of a page, and addresses that it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {value}" for name, value in attrs if name in ("src", "href")] + (
            ["script"] * (tag == "script")
        )

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_the_page(merges: Merges, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):  # a page of ours is replaced
        compare(merges.first, merges.second, html=page)
    assert f"written: {page}" in capsys.readouterr().out
    tables = Tables(page.read_text())
    assert not tables.loads and {UP, "parameters.rank_ratio", "0.85", "0.5", "28", "16"} <= set(tables.cells)
    assert list(tmp_path.iterdir()) == [page]
    own = tmp_path / "notes.html"
    own.write_text("mine")
    for place, message in ((own, "choose another name"), (tmp_path / "no" / "x.html", "does not exist")):
        with pytest.raises(DestinationError, match=message):
            compare(merges.first, merges.second, html=place)
    assert own.read_text() == "mine"


def test_a_name_cannot_become_markup(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>.weight"
    places = [
        save_model(tmp_path / side, {name: torch.full((2, 2), value)}) for side, value in (("a", 1.0), ("b", 2.0))
    ]
    compare(*map(str, places), html=tmp_path / "page.html")
    assert not Tables((tmp_path / "page.html").read_text()).loads


def test_an_adapter_on_a_base_is_the_sum(merges: Merges, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    up, down = torch.ones(64, 1), torch.ones(1, 32)
    key = f"base_model.model.{UP.removesuffix('.weight')}"
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    found = as_data(capsys, merges.base, f"{merges.base}+{adapter}", base=merges.base)
    assert {row["status"] for row in found["tensors"] if row["name"] != UP} == {"equal"}
    (row,) = [row for row in found["tensors"] if row["name"] == UP]
    assert row["squares"][2] == pytest.approx(4.0 * 64 * 32, rel=1e-5)
