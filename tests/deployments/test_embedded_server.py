"""Several embedded Prefect servers that share one home."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import torch
import yaml
from safetensors.torch import save_file

from eigenmerge.deployments.embedded_server import EmbeddedServer
from eigenmerge.deployments.prefect_settings import quiet_prefect


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    quiet_prefect()
    return tmp_path / "prefect"


def test_two_servers_that_start_together_on_a_new_home(fresh_home: Path) -> None:
    """One creates the database while the other waits; then both use it. No process is left after close."""
    servers = [EmbeddedServer() for _ in range(2)]
    processes = [psutil.Process(server._process.pid) for server in servers]
    try:
        with ThreadPoolExecutor(2) as pool:
            addresses = list(pool.map(lambda server: server.url(), servers))
        assert all(address.startswith("http://127.0.0.1:") for address in addresses)
        created = httpx.post(f"{addresses[0]}/flows/", json={"name": "seen-by-both"}, timeout=60)
        assert created.status_code == 201
        found = httpx.get(f"{addresses[1]}/flows/name/seen-by-both", timeout=60)
        assert found.json()["id"] == created.json()["id"]
        for process in processes:
            listening = {one.laddr.ip for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
            assert listening == {"127.0.0.1"}
    finally:
        for server in servers:
            server.close()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


@pytest.mark.soak
@pytest.mark.parametrize("round_number", range(3))
def test_four_merges_at_once(fresh_home: Path, tmp_path: Path, round_number: int) -> None:
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        save_file({"layers.0.w.weight": torch.randn(16, 16)}, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    content = {
        "merge_method": "swudi_a",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "one"), str(tmp_path / "two")],
    }
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump(content))
    command = [str(Path(sys.executable).parent / "eigenmerge"), "merge", str(recipe)]
    environment = {**os.environ, "EIGENMERGE_STORE": str(tmp_path / "store")}
    runs = [
        subprocess.Popen([*command, str(tmp_path / f"out{number}")], env=environment, stderr=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    errors = [run.communicate(timeout=280)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, errors
    assert len({(tmp_path / f"out{number}/model.safetensors").read_bytes() for number in range(4)}) == 1
