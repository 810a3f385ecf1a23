"""`eigenmerge report`: numbers against the tensors themselves, text, JSON, the page, runs, and what is not known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.errors import CheckpointError, DestinationError
from eigenmerge.core.steps.merge_run import merge_run
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.deployments.cli.commands.report_command import report

from .conftest import Merges, Terminal

UP = "model.layers.1.mlp.up_proj.weight"


def as_data(capsys: pytest.CaptureFixture[str], name: str, **options: Any) -> dict[str, Any]:
    report(name, as_json=True, **options)
    return json.loads(capsys.readouterr().out)


def test_estimates_are_near_the_exact_numbers(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    """Over 14 matrices of effective rank 10 or more, 16 probes: a standard deviation below 3%; the bound is five."""
    found = as_data(capsys, merges.first, store=merges.store)
    base, result = (load_file(f"{place}/model.safetensors") for place in (merges.base, merges.first))
    names = [layer["name"] for layer in found["layers"]]
    assert UP in names and not any("norm" in name for name in names)
    squares: list[float] = []
    for index, (expert, weight) in enumerate((("math", 0.5), ("code", 1.0), ("law", 1.0))):
        tensors = load_file(merges.root / expert / "model.safetensors")
        square = before = after = 0.0
        for name in names:
            vector = weight * (tensors[name] - base[name]).double()
            delta = (result[name] - base[name]).double()
            square += float(vector.square().sum())
            before += float((vector @ vector.T).square().sum() / vector.square().sum())
            after += float(((delta - vector) @ vector.T).square().sum() / vector.square().sum())
        squares.append(square)
        assert found["experts"][index]["total"]["interference"] == pytest.approx(after / before, rel=0.15)
    shares = [expert["total"]["share"] for expert in found["experts"]]
    assert shares == pytest.approx([square / sum(squares) for square in squares], rel=1e-3)
    (up,) = [layer for layer in found["layers"] if layer["name"] == UP]
    exact = float((result[UP] - base[UP]).double().norm())
    assert up["delta"] == pytest.approx(exact, rel=1e-3) and (up["rank"], up["directions"], up["kind"]) == (
        28,
        32,
        "up",
    )
    assert len(up["curves"][0]["values"]) == 32 and up["cost"]["seconds"] > 0


def test_a_merge_that_reads_no_expert_states_the_same(merges: Merges, tmp_path: Path) -> None:
    """The second merge found all spectra of the first in the store."""
    fresh = merge_run(read_recipe(merges.recipes[1]), str(tmp_path / "out"), store=str(tmp_path / "store"))
    assert fresh.decompositions_computed > 0
    for name in ("eigenmerge_report.html", "eigenmerge_manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == Path(merges.second, name).read_bytes()


def test_an_elementwise_method_has_norms_and_cosines(
    merges: Merges, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first 8192 entries are measured: here all, so that shares and cosines are exact."""
    recipe = {
        "merge_method": "linear",
        "base_model": merges.base,
        "models": [{"model": str(merges.root / name)} for name in ("math", "code", "law")],
    }
    merge_run(read_recipe(recipe), str(tmp_path / "out"), store=str(tmp_path / "store"))
    found = as_data(capsys, str(tmp_path / "out"), store=str(tmp_path / "store"))
    assert found["interference"] is None and found["missing"] == ""
    names = [layer["name"] for layer in found["layers"] if layer["delta"] is not None]
    assert UP in names and len(names) < len(found["layers"])  # vectors are not measured
    places = (merges.base, tmp_path / "out", merges.root / "math")
    tensors = [load_file(f"{place}/model.safetensors") for place in places]
    base, result, math = ({name: one[name].double() for name in names} for one in tensors)
    one, other = (torch.cat([(model[name] - base[name]).flatten() for name in base]) for model in (math, result))
    first = found["experts"][0]["total"]
    assert first["cosine"] == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=0.01)
    assert first["interference"] is None and sum(e["total"]["share"] for e in found["experts"]) == pytest.approx(1.0)
    assert all(layer["rank"] is None for layer in found["layers"])


def test_probes_that_are_gone_are_recorded_again(merges: Merges, tmp_path: Path) -> None:
    """As for a store of an earlier version: the spectra are there, and the experts are read once more."""
    store = tmp_path / "store"
    shutil.copytree(merges.store, store)
    shutil.rmtree(store / "measures")
    shutil.rmtree(store / "parts")
    again = merge_run(read_recipe(merges.recipes[0]), str(tmp_path / "out"), store=str(store))
    assert again.decompositions_computed == 0
    page = "eigenmerge_report.html"
    assert (tmp_path / "out" / page).read_bytes() == Path(merges.first, page).read_bytes()


def test_text_fits_the_terminal(merges: Merges, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.open(80)
    report(merges.first, store=merges.store)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or str(merges.root) in line for line in lines)
    assert any(line.split()[:2] == ["method", "swudi"] for line in lines)
    assert any(line.endswith("mlp.up_proj") and line.split()[:3] == ["2", "28", "32"] for line in lines)
    report(merges.first, store=merges.store, layer=UP)
    lines = capsys.readouterr().out.splitlines()
    assert "  rank          28 of 32: swudi: rank_ratio 0.85 (parameters)" in " ".join(lines[:5]).replace("\n", " ")
    assert lines[-1].strip().startswith("k" * 28) and "....  k: kept" in lines[-1]


def test_a_run_instead_of_its_checkpoint(merges: Merges, capsys: pytest.CaptureFixture[str]) -> None:
    key = json.loads(Path(merges.first, "eigenmerge_manifest.json").read_text())["run_key"]
    assert as_data(capsys, key[:10], store=merges.store) == as_data(capsys, merges.first, store=merges.store)


def test_the_page_of_the_command_has_costs(merges: Merges, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    report(merges.first, store=merges.store, html=page)
    report(merges.first, store=merges.store, html=page)  # replaces its own page
    assert f"written: {page}" in capsys.readouterr().out
    assert "last run" in page.read_text() and "last run" not in Path(merges.first, "eigenmerge_report.html").read_text()
    other = tmp_path / "notes.html"
    other.write_text("mine")
    own = Path(merges.first, "eigenmerge_report.html")
    for place, message in (
        (other, "is no page of `eigenmerge report`"),
        (tmp_path / "no" / "x.html", "does not exist"),
        (own, "is a file of the checkpoint"),
    ):
        with pytest.raises(DestinationError, match=message):
            report(merges.first, store=merges.store, html=place)


def test_what_an_earlier_version_did_not_record(
    merges: Merges, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without measures in the manifest and without a store: names, weights, ranks and energies."""
    out = tmp_path / "out"
    out.mkdir()
    content = json.loads(Path(merges.first, "eigenmerge_manifest.json").read_text())
    del content["expert_overlap"]
    for tensor in content["tensors"]:
        tensor.pop("measures", None)
    (out / "eigenmerge_manifest.json").write_text(json.dumps(content))
    found = as_data(capsys, str(out), store=str(tmp_path / "none"))
    assert found["interference"] is None and found["experts"][0]["total"]["share"] is None
    (up,) = [layer for layer in found["layers"] if layer["name"] == UP]
    assert (up["rank"], up["directions"], up["delta"]) == (28, 32, None) and "no spectra of this run" in found[
        "missing"
    ]
    report(str(out), store=str(tmp_path / "none"), html=tmp_path / "page.html")
    text = capsys.readouterr().out
    assert "spectra: the store" in text and "-" in text
    found = as_data(capsys, str(out), store=merges.store)  # shares follow from the spectra
    assert sum(expert["share"] for expert in found["layers"][3]["experts"].values()) == pytest.approx(1.0)


def test_no_such_tensor_or_merge(merges: Merges) -> None:
    with pytest.raises(CheckpointError, match=f"did you mean '{UP}'"):
        report(merges.first, store=merges.store, layer="model.layers.1.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"has no eigenmerge_manifest\.json"):
        report(merges.base, store=merges.store)
