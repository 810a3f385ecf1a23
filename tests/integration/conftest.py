"""Fixtures of the integration tests: one Prefect server for the session, the flow, and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..small_models import Models
from .processes import COMMAND
from .s3_models import ForkedCommands, S3Models, upload


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, make_prefect_home: Callable[[Path], Path]
) -> Iterator[str]:
    """The URL of one embedded server for all runs of the session, because starting one takes seconds."""
    home = make_prefect_home(tmp_path_factory.mktemp("prefect"))
    old = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(home)
    from eigenmerge.deployments.embedded_server import EmbeddedServer
    from eigenmerge.deployments.prefect_settings import quiet_prefect

    quiet_prefect()
    server = EmbeddedServer()
    try:
        yield server.url()
    finally:
        server.close()
        if old is None:
            del os.environ["PREFECT_HOME"]
        else:
            os.environ["PREFECT_HOME"] = old


RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def eigenmerge(prefect_server: str, tmp_path: Path) -> RunCommand:
    """Run the installed command in a new process; keyword `env` adds to the environment."""

    def run(
        *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PREFECT_API_URL": prefect_server,
            "EIGENMERGE_STORE": str(tmp_path / "store"),
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )

    return run


@contextmanager
def reporting_to(server: str) -> Iterator[None]:
    """Send flow runs of this process to `server`, without heartbeats: a flow waits a second for their thread to end."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_API_URL: server, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture
def merge_flow(prefect_server: str) -> Iterator[Callable[..., Any]]:
    """The flow in this process, which reports to the server of the session."""
    with reporting_to(prefect_server):
        from eigenmerge.flows import merge

        yield merge


@dataclass
class CommandResult:
    code: int
    out: str
    err: str


@pytest.fixture
def command(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """Run the command line in this process, which saves the seconds that a new interpreter takes."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("EIGENMERGE_STORE", str(tmp_path / "store"))

    def run(*arguments: str | Path) -> CommandResult:
        from eigenmerge.deployments.cli.app import main

        monkeypatch.setattr(sys, "argv", ["eigenmerge", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        code = 0
        try:
            with reporting_to(prefect_server):
                main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capfd.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run


@pytest.fixture
def uploaded_models(make_models: Callable[..., Models]) -> Models:
    """The local copy of `s3_models`. Two layers: every object costs several requests to a server in Python."""
    return make_models(layers=2)


@pytest.fixture
def s3_models(uploaded_models: Models, s3_root: Any) -> S3Models:
    """Small models on S3, below a new prefix."""
    return upload(uploaded_models, s3_root.uri, s3_root.storage_options)


@pytest.fixture(scope="session")
def forked_commands(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    """Runs commands in forked processes, which saves the seconds that a new interpreter takes."""
    with ForkedCommands(prefect_server, tmp_path_factory.mktemp("commands")) as commands:
        yield commands
