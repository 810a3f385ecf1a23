"""Layers with more directions than a batch of a stored spectrum, which the reader reads by another path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eigenmerge.core.cache.spectra.format import ROWS_PER_BATCH


def test_a_spectrum_of_several_batches_is_reused(make_models: Any, pipeline: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=2, layers=1, hidden=ROWS_PER_BATCH + 64)
    shared = str(tmp_path / "shared")
    pipeline(models.write_recipe("swudi"), tmp_path / "swudi", store=shared)
    reused = pipeline(models.write_recipe("swudi_a"), tmp_path / "reused", store=shared)
    assert reused.decompositions_computed == 0 and reused.decompositions_reused == 7
    pipeline(models.write_recipe("swudi_a"), tmp_path / "alone", store=str(tmp_path / "own"))
    name = "model.safetensors"
    assert (tmp_path / "reused" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
