"""kill -9 in the middle, and the same command again: what was done is not done again, and the bytes are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from .processes import COMMAND, num_parts, wait_until


def test_kill_and_the_same_command_again(make_models: Any, command: Any, pipeline: Any, tmp_path: Path) -> None:
    models = make_models(num_experts=3, layers=6, hidden=256)
    recipe = models.write_recipe("swudi_a")
    store = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_HOME": str(tmp_path / "home")}
    environment.pop("PREFECT_API_URL", None)  # with a server of its own, which must not outlive it
    started = [COMMAND, "merge", str(recipe), str(tmp_path / "out"), "--store", str(store), "--workers", "1"]
    process = subprocess.Popen(started, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: num_parts(store) >= 3, 90, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children, "the embedded server is a child"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "the embedded server outlived the run"
    finished = num_parts(store)
    assert not list((tmp_path / "out").glob("*")), "nothing half-written in the destination"

    again = command("merge", recipe, tmp_path / "out", "--store", store, "--json")
    assert again.code == 0, again.err
    result = json.loads(again.out)
    assert result["shards_reused"] == finished and result["shards_done"] > 0

    calm = pipeline(recipe, tmp_path / "calm", store=str(tmp_path / "store"), workers=2)
    assert result["shards_done"] + result["shards_reused"] == calm.shards_done
    assert result["decompositions_computed"] < calm.decompositions_computed
    for name in ("model.safetensors", "eigenmerge_manifest.json", "README.md", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors"])
def test_an_unfinished_assembly_is_taken_over(models: Any, pipeline: Any, tmp_path: Path, name: str) -> None:
    """What a kill during the reduce leaves: a marker, and files that may be wrong."""
    recipe, store = models.write_recipe("average"), str(tmp_path / "store")
    pipeline(recipe, tmp_path / "a", store=store)
    run_key = json.loads((tmp_path / "a/eigenmerge_manifest.json").read_text())["run_key"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.eigenmerge-incomplete.json").write_text(json.dumps({"run_key": run_key}))
    (tmp_path / "b" / name).write_bytes(b"half")
    pipeline(recipe, tmp_path / "b", store=store)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list((tmp_path / "b").glob(".*"))
