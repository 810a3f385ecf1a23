"""The Python functions: results with ranks and spectra, sizes as text, errors that name arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import eigenmerge
from eigenmerge.deployments.python_arguments import errors_name_arguments, name_arguments


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, object]:
    for number, name in enumerate(("base", "a", "b", "c")):
        (tmp_path / name).mkdir()
        generator = torch.Generator().manual_seed(number)
        tensors = {f"layers.{layer}.weight": torch.randn(24, 16, generator=generator) for layer in range(2)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    models = [str(tmp_path / name) for name in "abc"]
    return {"merge_method": "swudi_a", "base_model": str(tmp_path / "base"), "models": models}


def test_a_result_has_ranks_spectra_and_manifest(recipe: dict[str, object], tmp_path: Path) -> None:
    result = eigenmerge.merge(
        recipe, tmp_path / "out", tmp_path / "store", max_memory="4GB", use_prefect=False, progress=False
    )
    ranks = {row.name: row.rank for row in result.ranks()}
    assert set(ranks) == {"layers.0.weight", "layers.1.weight"} and all(rank > 0 for rank in ranks.values())
    assert result.manifest.recipe["merge_method"] == "swudi_a"
    table = result.spectra()
    for name, rank in ranks.items():
        rows = [row for row in table.to_pylist() if row["tensor"] == name]
        values = [row["value"] for row in rows]
        assert sum(row["kept"] for row in rows) == rank == rows[0]["rank"]
        assert values == sorted(values, reverse=True) == result.values(name).tolist()
        spectrum = eigenmerge.read_spectrum(eigenmerge.Store(str(tmp_path / "store")), rows[0]["spectrum_key"])
        assert spectrum.spectrum.values.tolist() == pytest.approx(values)
    assert "storage_options" not in result.to_dict()
    assert repr(result).endswith(f"out: 3 experts, 2 tensors, by swudi_a; run {result.run_key[:12]})")
    check = eigenmerge.verify(tmp_path / "out", sample=0, load=False)
    assert repr(check).endswith(": ok; 3 files, 2 tensors, 0 recomputed)"), check
    plan = eigenmerge.plan(recipe)
    assert repr(plan).startswith("Plan(swudi_a, 3 experts on ") and repr(plan).endswith(f"run {plan.run_key[:12]})")
    with pytest.raises(KeyError, match=r"layers\.0\.wait: no spectrum .* did you mean"):
        result.values("layers.0.wait")


def test_spectra_that_were_not_kept_are_an_error(recipe: dict[str, object], tmp_path: Path) -> None:
    result = eigenmerge.merge({**recipe, "spectra": "none"}, tmp_path / "out", tmp_path / "store", use_prefect=False)
    assert result.ranks()
    with pytest.raises(eigenmerge.StoreError, match="has no spectra of this run; merge with a store"):
        result.spectra()


def test_a_sweep_takes_sizes_and_names_arguments(recipe: dict[str, object], tmp_path: Path) -> None:
    def size(candidate: eigenmerge.Candidate) -> float:
        return float(sum(tensor.abs().sum() for tensor in candidate.values()))

    store, grid = tmp_path / "store", {"rank_scale": [0.5, 1.0]}
    found = eigenmerge.sweep(recipe, grid, size, store=store, max_memory="1GB", use_prefect=False)
    assert repr(found).startswith("SweepResult(2 candidates, best rank_scale=")
    wrong: list[tuple[dict[str, Any], str]] = [({"workers": 0}, "^workers 0"), ({"max_memory": "x"}, "^max_memory is")]
    for options, message in wrong:
        with pytest.raises(eigenmerge.RecipeError, match=message):
            eigenmerge.sweep(recipe, grid, size, store=store, use_prefect=False, **options)
    with pytest.raises(eigenmerge.RecipeError, match=r"^grid rank_scale: has no values"):
        eigenmerge.sweep(recipe, {"rank_scale": []}, size, store=store)


def test_every_model_that_is_missing_is_named(
    recipe: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = ["./math", str(tmp_path / "d")]
    with pytest.raises(eigenmerge.CheckpointError) as caught:
        eigenmerge.plan({**recipe, "models": models})
    assert str(caught.value).startswith("2 models cannot be read: ")
    assert all(repr(model) in str(caught.value) for model in models)


def test_errors_name_arguments(recipe: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    with pytest.raises(eigenmerge.DestinationError, match="pass overwrite=True") as caught:
        eigenmerge.merge(recipe, tmp_path / "out", tmp_path / "store", use_prefect=False)
    assert "--" not in str(caught.value)
    with pytest.raises(eigenmerge.RecipeError, match="max_memory is 'much'; expected a size such as 5GB"):
        eigenmerge.plan(recipe, max_memory="much")
    with pytest.raises(eigenmerge.RecipeError, match=r"give rank=R \(1 or more\), or max_error=E"):
        eigenmerge.extract_adapter("a", "b", str(tmp_path / "adapter"))


def test_only_own_arguments_are_named() -> None:
    message = "mergekit's --allow-crimes; pass --allow-nonfinite, --store or --rank R, not -- nor --x"
    assert name_arguments(message, {"allow_nonfinite", "store", "rank"}, {"allow_nonfinite"}) == (
        "mergekit's --allow-crimes; pass allow_nonfinite=True, store or rank=R, not -- nor --x"
    )

    @errors_name_arguments
    def fail(store: str | None = None) -> None:
        error = eigenmerge.CheckpointError(f"give --store {store}")
        error.source = "file"
        raise error

    with pytest.raises(eigenmerge.CheckpointError, match="give store x") as caught:
        fail(store="x")
    assert caught.value.source == "file"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.dtype(">f4")])
def test_arrays_are_merged_as_tensors(dtype: type[np.floating]) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(12, 8)).astype(dtype).T for _ in range(3)]
    arrays[0].setflags(write=False)
    found = eigenmerge.merge_task_vectors(arrays, method="swudi_a")
    native = [torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="))) for array in arrays]
    assert isinstance(found, np.ndarray) and found.shape == (8, 12)
    assert np.array_equal(found, eigenmerge.merge_task_vectors(native, method="swudi_a").numpy())


def test_arrays_that_hold_no_floating_point_numbers_are_refused() -> None:
    with pytest.raises(eigenmerge.CheckpointError, match="dtype int64; expected float16, float32 or float64"):
        eigenmerge.merge_task_vectors([np.ones((2, 2), dtype=np.int64)])


def test_a_result_has_a_report(recipe: dict[str, object], tmp_path: Path) -> None:
    result = eigenmerge.merge(recipe, tmp_path / "out", tmp_path / "store", use_prefect=False)
    assert (tmp_path / "out" / "eigenmerge_report.html").exists()
    report = result.report()
    assert [layer.name for layer in report.layers] == ["layers.0.weight", "layers.1.weight"]
    assert str(report).startswith("method ") and "interference" in str(report) and "swudi_a" in repr(report)
    page = report.write(tmp_path / "page.html").read_text()
    assert page == report.html and "layers.1.weight" in page
    assert report._repr_html_().startswith("<iframe srcdoc=")  # pyright: ignore[reportPrivateUsage]
    eigenmerge.merge(recipe, tmp_path / "other", tmp_path / "store", use_prefect=False, report=False)
    assert not (tmp_path / "other" / "eigenmerge_report.html").exists()
