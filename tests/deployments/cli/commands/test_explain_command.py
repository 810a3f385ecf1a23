"""`eigenmerge explain` and `inspect` of a merge: with its store, without it, and without its models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.deployments.cli.commands.explain_command import explain
from eigenmerge.deployments.cli.commands.inspect_command import inspect

from .conftest import Merges, Terminal

QUERY, UP, NORM = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


def test_a_merged_tensor(merges: Merges, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.open(80)
    explain(merges.first, QUERY, store=merges.store)
    text = capsys.readouterr().out
    joined = " ".join(text.split())
    assert "merged by swudi" in joined and "rank_ratio 0.25: rules[0].parameters" in joined
    assert "rank 8 of 32 directions, which hold " in joined
    assert "why swudi: rank_ratio 0.25 (rules[0].parameters)" in joined
    assert re.search(r"last kept eigenvalue 0\.\d+ of the largest, first dropped 0\.\d+", joined)
    assert re.search(r"/math: weight 0\.5 \(models\[0\]\.parameters\), \d+\.\d% of the squared norms", joined)
    assert re.search(r"/law: weight 1 \(default\)", joined)
    assert len(re.findall(r"model\.safetensors bytes \[\d+, \d+\) F32 32x32", joined)) == 4
    assert re.search(r"spectra/\S+\.arrow$", joined)


def test_the_shares_are_those_of_the_weighted_changes(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    explain(merges.first, UP, store=merges.store, as_json=True)
    found = json.loads(capsys.readouterr().out)
    base = load_file(f"{merges.base}/model.safetensors")[UP]
    squares = [
        float((weight * (load_file(merges.root / name / "model.safetensors")[UP] - base)).square().sum())
        for name, weight in (("math", 0.5), ("code", 1.0), ("law", 1.0))
    ]
    assert [fact["share"] for fact in found["experts"]] == pytest.approx([s / sum(squares) for s in squares], rel=1e-3)
    assert [fact["weight"] for fact in found["experts"]] == [0.5, 1.0, 1.0]


def test_without_store_and_models(merges: Merges, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.copytree(merges.first, tmp_path / "moved")
    manifest = json.loads((moved / "eigenmerge_manifest.json").read_text())
    manifest["recipe"]["base_model"] = str(tmp_path / "gone")
    (moved / "eigenmerge_manifest.json").write_text(json.dumps(manifest))
    explain(str(moved), UP, store=str(tmp_path / "other-store"))
    text = capsys.readouterr().out
    assert "rank  28 of 32 directions" in text and "/math: weight 0.5 (models[0].parameters)" in text
    assert "has no spectra of this run" in text and "what was read is not listed: " in text
    assert text.count("read ") == 1 and not (tmp_path / "other-store").exists()


def test_other_tensors(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    explain(merges.first, NORM, store=merges.store, sources=False)
    text = capsys.readouterr().out
    assert "the base plus the mean of the experts' changes" in text and "/math: weight 0.5" in text
    assert "rank " not in text and "what was read is not listed: not asked for" in text


@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj", "model.layers.1.mlp.up_porj.weight"])
def test_the_nearest_name(merges: Merges, name: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"none of this name; the nearest: model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        explain(merges.first, name)


def test_inspect_shows_the_merge_and_its_ranks(
    merges: Merges, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.open(80)
    inspect(merges.first, ranks=True, store=merges.store)
    text = capsys.readouterr().out
    assert re.search(r"merged by +swudi, Eigenmerge ", text) and re.search(r"merged at +20\d\d-\d\d-\d\d ", text)
    assert re.search(r"treatments +7 mean, 14 swudi", text) and f"{merges.root}/law" in text
    lines = text.splitlines()
    assert all(len(line) <= 80 or str(merges.root) in line for line in lines)
    start = lines.index("rank by swudi: rank_ratio 0.25 (rules[0].parameters)")
    assert lines[start + 1].split() == ["rank", "of", "energy", "last", "kept", "first", "dropped", "layer"]
    rank, of, energy, kept, dropped, layer = lines[start + 2].split()
    assert (rank, of, layer) == ("8", "32", "model.layers.0.self_attn.q_proj")
    assert 0 < float(energy.rstrip("%")) < 100 and 0 < float(dropped) < float(kept) < 1
    inspect(merges.first, ranks=True, store=merges.store, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["merge"]["method"] == "swudi" and found["merge"]["started"] <= found["merge"]["finished"]
    assert {row["rank"] for row in found["ranks"] if row["directions"] == 64} == {55}


def test_inspect_of_a_model_that_is_no_merge(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(merges.base)
    assert "merged" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"base: has no eigenmerge_manifest\.json; --ranks needs"):
        inspect(merges.base, ranks=True)
