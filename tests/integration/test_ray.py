"""The same flow on a local Ray cluster. Ray is 440 MB, so it is an extra: `make ray` installs it and runs this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the ray extra is not installed; `make ray` installs it")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(models: Any, merge_flow: Any, tmp_path: Path) -> None:
    recipe = models.write_recipe("swudi_a")
    merge_flow(recipe, tmp_path / "threads", store=str(tmp_path / "a"))
    result = merge_flow(recipe, tmp_path / "ray", store=str(tmp_path / "b"), runner="ray", workers=2)
    assert result.decompositions_computed == 21
    for name in ("model.safetensors", "eigenmerge_manifest.json"):
        assert (tmp_path / "threads" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()
