"""A run that can be finished is finished: Prefect's server is killed, or was never there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.cache.reports import ShardReport
from eigenmerge.core.errors import DeployError
from eigenmerge.core.steps.listener import Listener
from eigenmerge.core.steps.open_run import PreparedRun, prepare_run
from eigenmerge.core.steps.read_recipe import read_recipe
from eigenmerge.deployments.embedded_server import EmbeddedServer, check_listens
from eigenmerge.deployments.loopback import loopback_without_proxy
from eigenmerge.deployments.reported_merge import reported_merge

from ..conftest import free_port


@pytest.fixture
def recipe(make_models: Callable[..., Any]) -> Any:
    return read_recipe(make_models(num_experts=2, layers=2).recipe("task_arithmetic"))


@pytest.fixture
def prepared(recipe: Any, tmp_path: Path) -> PreparedRun:
    return prepare_run(recipe, str(tmp_path / "out"), store=str(tmp_path / "store"), workers=1)


class KillServer(Listener):
    """Kills a server after the first shard."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server

    def shard_done(self, report: ShardReport) -> None:
        if self.server.is_running:
            os.kill(self.server._process.pid, signal.SIGKILL)
            self.server._process.wait()


def test_a_server_that_dies_in_the_middle(
    recipe: Any,
    prepared: PreparedRun,
    make_prefect_home: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_HOME", str(make_prefect_home(tmp_path / "prefect")))
    server = EmbeddedServer()
    try:
        url = server.url()
        monkeypatch.setenv("PREFECT_API_URL", url)
        with temporary_settings({PREFECT_API_URL: url}):  # a server of the user: the run reports to its page
            parameters = {"recipe": recipe, "destination": str(tmp_path / "out")}
            result = reported_merge(prepared, parameters, runner="threads", listeners=[KillServer(server)])
    finally:
        server.close()
    assert result.shards_done == len(prepared.run.plan.shards)
    assert (tmp_path / "out" / "model.safetensors").exists()
    (warning,) = [text for text in result.warnings if "Prefect" in text]
    assert warning.startswith("Prefect's server did not answer, so its page of this run is incomplete")


def test_without_a_writable_home_the_run_needs_no_prefect(
    recipe: Any, prepared: PreparedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/proc/no-such-home")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    result = reported_merge(prepared, {"recipe": recipe, "destination": str(tmp_path / "out")}, runner="threads")
    (warning,) = result.warnings
    assert warning.startswith("computed without Prefect") and "cannot be written" in warning
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/api", "not an address", "ftp://host/api", "http:///api"])
def test_a_server_that_the_user_named_must_answer(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DeployError, match="no Prefect server answers at"):
        check_listens(address.format(port=free_port()))


def test_no_proxy_receives_requests_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org, localhost")
    monkeypatch.delenv("no_proxy", raising=False)
    assert loopback_without_proxy()["no_proxy"] == "example.org,localhost,127.0.0.1,::1"
    monkeypatch.setenv("no_proxy", "*")
    assert loopback_without_proxy() == {}


def test_reports_stop_after_a_failure_and_come_back() -> None:
    from eigenmerge.flows.server_health import ServerHealth

    health, calls, down = ServerHealth(retry_after=1.0), 0, True

    def action() -> str:
        nonlocal calls
        calls += 1
        if down:
            raise ConnectionError("refused")
        return "sent"

    assert [health.report(action) for _ in range(5)] == [None] * 5
    assert calls == 1 and health.failure == "ConnectionError: refused"
    down = False
    time.sleep(1.1)
    assert health.report(action) == "sent" and health.answers
