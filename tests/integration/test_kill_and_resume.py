"""A merge after SIGKILL: the same command reuses finished shards and gives the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from .processes import COMMAND, START_SECONDS, last_shard_claimed, num_parts, wait_until


@pytest.mark.timeout(900)
def test_a_killed_merge_is_resumed_by_the_same_command(
    make_models: Any, make_prefect_home: Any, command: Any, pipeline: Any, tmp_path: Path
) -> None:
    models = make_models(num_experts=3, layers=4, hidden=256)
    recipe = models.write_recipe("swudi_a")
    store = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_HOME": str(make_prefect_home(tmp_path / "home"))}
    environment.pop("PREFECT_API_URL", None)  # the command starts its own server, which must end with it
    started = [COMMAND, "merge", str(recipe), str(tmp_path / "out"), "--store", str(store), "--workers", "1"]
    with last_shard_claimed(recipe, store):
        process = subprocess.Popen(started, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: num_parts(store) >= 3, START_SECONDS, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert children, "the command has started its server as a child"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "the embedded server outlived the run"
    finished = num_parts(store)
    assert not list((tmp_path / "out").glob("*")), "the destination is empty"

    again = command("merge", recipe, tmp_path / "out", "--store", store, "--json")
    assert again.code == 0, again.err
    result = json.loads(again.out)
    assert result["shards_reused"] == finished and result["shards_done"] > 0

    reference = pipeline(recipe, tmp_path / "reference", store=str(tmp_path / "store"), workers=2)
    assert result["shards_done"] + result["shards_reused"] == reference.shards_done
    assert result["decompositions_computed"] < reference.decompositions_computed
    for name in ("model.safetensors", "eigenmerge_manifest.json", "eigenmerge_report.html", "README.md", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors"])
def test_an_unfinished_assembly_is_completed(models: Any, pipeline: Any, tmp_path: Path, name: str) -> None:
    """The state after a kill while files are assembled: a marker, and an incomplete file."""
    recipe, store = models.write_recipe("average"), str(tmp_path / "store")
    pipeline(recipe, tmp_path / "a", store=store)
    run_key = json.loads((tmp_path / "a/eigenmerge_manifest.json").read_text())["run_key"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.eigenmerge-incomplete.json").write_text(json.dumps({"run_key": run_key}))
    (tmp_path / "b" / name).write_bytes(b"incomplete")
    pipeline(recipe, tmp_path / "b", store=store)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list((tmp_path / "b").glob(".*"))
