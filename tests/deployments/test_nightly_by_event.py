"""An announced expert starts the nightly merge: a real Prefect server and process worker, without a schedule."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import FlowRunSort
from safetensors.torch import save_file

from eigenmerge.deployments.deploy import DeployOptions, deploy

EIGENMERGE = Path(sys.executable).parent / "eigenmerge"


def save_model(folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"layer.weight": torch.randn(16, 8, generator=generator)}, folder / "model.safetensors")


@contextlib.contextmanager
def worker(pool: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
            env={**environment, "PREFECT_LOGGING_LEVEL": "INFO"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            children = psutil.Process(process.pid).children(recursive=True)  # a flow run is in another session
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def nightly_states() -> list[State]:
    """Return the states of the runs of the deployment, the earliest run first."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("nightly/nightly-process")
        mine = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        runs = client.read_flow_runs(deployment_filter=mine, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    return [run.state for run in runs if run.state is not None]


def test_an_announced_expert_is_merged(prefect_api: str, server_environment: dict[str, str], tmp_path: Path) -> None:
    registry, published = tmp_path / "registry", tmp_path / "published"
    save_model(tmp_path / "base", 0)
    save_model(registry / "first", 1)
    save_model(registry / "second", 2)
    (tmp_path / "recipe.yml").write_text(f"merge_method: task_arithmetic\nbase_model: {tmp_path / 'base'}\n")
    options = DeployOptions(
        store=str(tmp_path / "store"),
        recipe=str(tmp_path / "recipe.yml"),
        registry=str(registry),
        publish=str(published),
        pool="by-event",
        cron="0 0 1 1 *",  # never during the test
    )
    deploy("process", options, api_url=prefect_api)

    environment = {**server_environment, "PREFECT_API_URL": prefect_api}
    log = tmp_path / "worker.log"
    with worker("by-event", environment, log):
        announced = subprocess.run(
            [EIGENMERGE, "announce", registry, "second"], env=environment, capture_output=True, text=True, timeout=120
        )
        assert announced.returncode == 0, announced.stderr
        deadline = time.monotonic() + 240
        while not (ended := [state for state in nightly_states() if state.is_final()]):
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
    assert any(state.is_completed() for state in ended), f"{ended}\n{log.read_text()[-4000:]}"
    state = json.loads((published / "latest.json").read_text())
    assert set(state["experts"]) == {"first", "second"}
    assert (published / state["folder"] / "model.safetensors").exists()
