"""Names, tags and artifacts of a run on the Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx


def test_name_tags_and_artifacts_of_a_run(models: Any, merge_flow: Any, prefect_server: str, tmp_path: Path) -> None:
    result = merge_flow(models.write_recipe("swudi_a"), tmp_path / "out", store=str(tmp_path / "store"))
    run = {"tags": {"all_": ["eigenmerge", "swudi_a", f"run:{result.run_key[:12]}"]}}
    (found,) = httpx.post(f"{prefect_server}/flow_runs/filter", json={"flow_runs": run}).json()
    assert found["name"] == "swudi_a: 3 experts on base"
    query = {"artifacts": {"flow_run_id": {"any_": [found["id"]]}}}
    artifacts = {one["key"]: one for one in httpx.post(f"{prefect_server}/artifacts/filter", json=query).json()}
    assert {"shards", "layers", "result", "spectra"} <= set(artifacts)
    assert artifacts["shards"]["data"] == 100.0
    assert (
        "decompositions computed" in artifacts["result"]["data"]
        and str(tmp_path / "out") in artifacts["result"]["data"]
    )
    assert artifacts["layers"]["data"].count("model.layers.0") == 9
    assert artifacts["spectra"]["data"].startswith("data:image/png;base64,")
