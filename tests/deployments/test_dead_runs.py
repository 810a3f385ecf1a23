"""Runs of machines that died do not hold the pool, and what waits behind a run is done by one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import torch
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Pending, Running, Scheduled, State
from safetensors.torch import save_file

from eigenmerge.core.errors import DeployError
from eigenmerge.deployments.announce import announce_expert
from eigenmerge.deployments.dead_runs import PENDING_NAME, RUNNING_NAME, apply_watch
from eigenmerge.deployments.deploy import DeployOptions, deploy, deployment_settings
from eigenmerge.flows.queued_runs import cancel_queued_runs

WORKER_MARK = "EIGENMERGE_TEST_WORKER"
NIGHTLY = {"recipe": "s3://bucket/recipe.yaml", "registry": "s3://bucket/experts", "publish": "s3://bucket/merged"}


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client
        for name in (RUNNING_NAME, PENDING_NAME):  # the server is shared with tests that have runs of their own
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)


def test_options_of_the_nightly_merge_reach_it_alone() -> None:
    options = DeployOptions(store="/store", **NIGHTLY, keep=7, dead_after=120, job_variables={"env": {"REGION": "eu"}})
    merge, nightly = deployment_settings("process", options)
    assert nightly["parameters"]["keep"] == 7 and "keep" not in merge["parameters"]
    expected = {"env": {"REGION": "eu", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "40"}}
    assert merge["work_pool"]["job_variables"] == nightly["work_pool"]["job_variables"] == expected


def test_a_time_below_three_heartbeats_is_refused() -> None:
    with pytest.raises(DeployError, match="--dead-after is 60 seconds; expected 90 or more"):
        deployment_settings("process", DeployOptions(store="/store", dead_after=60))


def test_the_automations_are_created_once_and_updated(client: SyncPrefectClient) -> None:
    apply_watch(client)
    apply_watch(client, dead_after=300)
    for name in (RUNNING_NAME, PENDING_NAME):
        (automation,) = client.read_automations_by_name(name)
        assert automation.trigger.within == timedelta(seconds=300)  # pyright: ignore[reportAttributeAccessIssue]
        assert "for 300 s" in automation.actions[0].message  # pyright: ignore[reportAttributeAccessIssue]


def test_a_second_deployment_leaves_the_automations_alone(client: SyncPrefectClient, prefect_api: str) -> None:
    """The server forgets the runs that an automation waits for when it is updated."""
    options = DeployOptions(store="/store", pool="again", dead_after=300)
    deploy("process", options, api_url=prefect_api)
    first = [automations(client, name) for name in (RUNNING_NAME, PENDING_NAME)]
    assert [len(found) for found in first] == [1, 1]
    deploy("process", options, api_url=prefect_api)
    # Equal with the time of the last update, and the identity of the trigger.
    assert [automations(client, name) for name in (RUNNING_NAME, PENDING_NAME)] == first

    client.pause_automation(first[0][0]["id"])
    deploy("process", replace(options, dead_after=400), api_url=prefect_api)
    assert [one["enabled"] for name in (RUNNING_NAME, PENDING_NAME) for one in automations(client, name)] == [
        False,
        True,
    ]


def automations(client: SyncPrefectClient, name: str) -> list[dict[str, Any]]:
    """Return what the server stores of the automations of a name."""
    body = {"sort": "UPDATED_DESC", "automations": {"name": {"any_": [name]}}}
    return client.request("POST", "/automations/filter", json=body).json()


def test_a_run_does_the_work_of_those_that_wait(
    client: SyncPrefectClient, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy("process", DeployOptions(store="/store", **NIGHTLY, pool="waiting"), api_url=prefect_api)
    own = create_run(client, "nightly/nightly-process", Running())
    now = datetime.now(UTC)
    waiting = [
        create_run(client, "nightly/nightly-process", Scheduled(scheduled_time=now)),
        create_run(client, "nightly/nightly-process", Scheduled(scheduled_time=now - timedelta(minutes=5))),
        create_run(
            client,
            "nightly/nightly-process",
            Scheduled(name="AwaitingConcurrencySlot", scheduled_time=now + timedelta(seconds=30)),
        ),
    ]
    later = create_run(client, "nightly/nightly-process", Scheduled(scheduled_time=now + timedelta(hours=5)))
    other = create_run(client, "merge/merge-process", Scheduled(scheduled_time=now))

    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(own.id))
    assert cancel_queued_runs() == 3
    assert all(state_of(client, run) is StateType.CANCELLED for run in waiting)
    assert state_of(client, own) is StateType.RUNNING
    assert state_of(client, later) is state_of(client, other) is StateType.SCHEDULED
    assert cancel_queued_runs() == 0


def create_run(client: SyncPrefectClient, deployment: str, state: State[Any]) -> FlowRun:
    parameters = {"recipe": "recipe.yml", "destination": "/out"} if deployment.startswith("merge/") else {}
    identifier = client.read_deployment_by_name(deployment).id
    run = client.create_flow_run_from_deployment(identifier, parameters=parameters, state=state)
    if state.type in (StateType.RUNNING, StateType.PENDING):
        client.set_flow_run_state(run.id, state, force=True)
    return run


def state_of(client: SyncPrefectClient, run: FlowRun) -> StateType | None:
    return client.read_flow_run(run.id).state_type


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_pool_is_free_again_after_worker_and_run_were_killed(
    client: SyncPrefectClient, prefect_api: str, server_environment: dict[str, str], tmp_path: Path
) -> None:
    """Of three announcements one run starts and is killed, one does the work of both others, and one is canceled."""
    registry, dead_after = tmp_path / "registry", 90
    for number, folder in enumerate((tmp_path / "base", registry / "first", registry / "second")):
        save_model(folder, number)
    (tmp_path / "recipe.yml").write_text(f"merge_method: swudi_a\nbase_model: {tmp_path / 'base'}\n")
    options = DeployOptions(
        store=str(tmp_path / "store"),
        recipe=str(tmp_path / "recipe.yml"),
        registry=str(registry),
        publish=str(tmp_path / "published"),
        pool="dying",
        cron="0 0 1 1 *",  # never during the test
        dead_after=dead_after,
    )
    deploy("process", options, api_url=prefect_api)
    environment = {**server_environment, "PREFECT_API_URL": prefect_api}
    announce_expert(str(registry), "first", api_url=prefect_api)
    with worker("dying", environment, tmp_path / "first.log") as first:
        wait_until(lambda: runs_in(client, StateType.RUNNING), tmp_path / "first.log")
        signal_all(first, signal.SIGSTOP)  # the machine is silent from here on
        silent_since = datetime.now(UTC)
        announce_expert(str(registry), "second", api_url=prefect_api)
        announce_expert(str(registry), "first", api_url=prefect_api)
        wait_until(lambda: len(runs_in(client, StateType.SCHEDULED)) == 2, tmp_path / "first.log")
        signal_all(first, signal.SIGKILL)
    (dead,) = runs_in(client, StateType.RUNNING)  # the server does not know

    with worker("dying", environment, tmp_path / "second.log"):
        wait_until(lambda: runs_in(client, StateType.COMPLETED), tmp_path / "second.log", seconds=300)
    (done,) = runs_in(client, StateType.COMPLETED)
    ended = client.read_flow_run(dead.id)
    assert ended.state_type is StateType.CRASHED, (ended.state, done, (tmp_path / "second.log").read_text()[-3000:])
    assert len(runs_in(client, StateType.CANCELLED)) == 1 and not runs_in(client, StateType.SCHEDULED)
    assert done.start_time is not None
    waited = (done.start_time - silent_since).total_seconds()
    print(f"the next run started {waited:.0f} s after the last sign of life")
    assert dead_after - 30 < waited < 2 * dead_after  # the limit, and the start of a process on a busy machine
    assert (tmp_path / "published" / "latest.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("then", ["nothing", "deploy again", "deploy with another time"])
def test_a_run_that_a_dead_worker_took_is_ended(
    client: SyncPrefectClient, prefect_api: str, tmp_path: Path, then: str
) -> None:
    """A process worker starts a run at once; on Kubernetes a run may wait for a GPU."""
    options = DeployOptions(store="/store", pool="orphans", dead_after=90)
    image = "registry.example/eigenmerge:0.1.0"
    on_cluster = DeployOptions(store="/store", image=image, dead_after=90)
    deploy("process", options, api_url=prefect_api)
    deploy("kubernetes", on_cluster, api_url=prefect_api)
    orphan = create_run(client, "merge/merge-process", Pending())
    silent = create_run(client, "merge/merge-process", Running())
    in_queue_of_cluster = create_run(client, "merge/merge-kubernetes", Pending())
    log, began, most = tmp_path / "no.log", time.monotonic(), 160.0
    log.touch()
    if then != "nothing":
        time.sleep(45)
        if then == "deploy again":
            deploy("process", options, api_url=prefect_api)
        else:
            deploy("process", replace(options, dead_after=100), api_url=prefect_api)
            most += 55
    wait_until(lambda: state_of(client, orphan) is state_of(client, silent) is StateType.CRASHED, log, seconds=250)
    assert time.monotonic() - began < most, "the wait did not begin anew"
    assert state_of(client, in_queue_of_cluster) is StateType.PENDING


def save_model(folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    tensors = {f"layers.{index}.weight": torch.randn(16, 8, generator=generator) for index in range(2)}
    save_file(tensors, folder / "model.safetensors")


def runs_in(client: SyncPrefectClient, state: StateType) -> list[FlowRun]:
    """Return the runs of the nightly deployment in a state, without those of its schedule."""
    deployment = client.read_deployment_by_name("nightly/nightly-process")
    runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])))
    soon = datetime.now(UTC) + timedelta(hours=1)
    due = [run for run in runs if run.expected_start_time is None or run.expected_start_time < soon]
    return [run for run in due if run.state_type is state]


def wait_until(ready: Callable[[], object], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)


@contextmanager
def worker(pool: str, environment: dict[str, str], log: Path) -> Iterator[str]:
    """Run a process worker, and yield the value of WORKER_MARK by which its processes are found."""
    mark = uuid4().hex
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
            env={**environment, WORKER_MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield mark
        finally:
            signal_all(mark, signal.SIGKILL)
            process.wait()


def signal_all(mark: str, number: signal.Signals) -> None:
    """Send a signal to a worker and its flow runs, which need not be its children; twice, for one that just started."""
    for _ in range(2):
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if process.environ().get(WORKER_MARK) == mark:
                    os.kill(process.pid, number)
