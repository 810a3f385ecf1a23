"""A recipe gives the same bytes whatever the store holds: nothing, or the spectra that another run has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_recipe

ROUNDED = {"arithmetic": "float64", "spectra_dtype": "float32", "out_dtype": "float32"}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "svc"), [("swudi", None), ("tsv_m", {"svc": {"alpha": 0.4}}), ("ties", {"svc": {}})]
)
def test_all_ways_to_a_spectrum_give_the_same_bytes(
    make_models: Any, pipeline: Any, tmp_path: Path, method: str, svc: Any
) -> None:
    models = make_models(num_experts=2, layers=1)
    extra = {} if svc is None else {"calibration": svc}
    found = {}
    for kept in ("none", "full"):
        store = tmp_path / f"store-{kept}"
        recipe = models.recipe(method, spectra=kept, **ROUNDED, **extra)
        pipeline(recipe, tmp_path / kept, store=store)
        found[kept] = weights(tmp_path / kept)
        for path in store.glob("parts/**/*.*"):
            path.unlink()
        # what the store holds now decides what is decomposed again, for each of the three kinds of recipe
        for again in ("values", "full", "none"):
            out = tmp_path / f"{kept}-{again}"
            pipeline(models.recipe(method, spectra=again, **ROUNDED, **extra), out, store=store)
            found[f"{kept}, then {again}"] = weights(out)
            for path in store.glob("parts/**/*.*"):
                path.unlink()
    assert len(set(found.values())) == 1, {name: hash(value) for name, value in found.items()}


def test_vectors_of_another_dtype_are_not_reused(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    models = make_models(layers=1)
    fresh = pipeline(models.recipe("swudi", arithmetic="float64"), tmp_path / "fresh", store=tmp_path / "one")
    pipeline(models.recipe("swudi", **ROUNDED), tmp_path / "rounded", store=tmp_path / "two")
    after = pipeline(models.recipe("swudi", arithmetic="float64"), tmp_path / "after", store=tmp_path / "two")
    assert after.decompositions_computed == fresh.decompositions_computed > 0
    assert weights(tmp_path / "after") == weights(tmp_path / "fresh")


def test_what_the_store_keeps_does_not_change_the_run(make_models: Any) -> None:
    models = make_models(num_experts=2, layers=1)

    def key(**keys: Any) -> str:
        return make_plan(read_recipe(models.recipe("swudi", **keys))).run_key

    assert key() == key(spectra="values") == key(spectra="none", spectra_dtype="float64") == key(fingerprint="sampled")
    assert key(arithmetic="float64") != key(arithmetic="float64", spectra_dtype="float32")
