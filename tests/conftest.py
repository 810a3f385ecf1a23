"""Fixtures for every test: real S3 servers on this machine, small models, and the merge without Prefect."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from .faulty_proxy import FaultyProxy
from .small_models import Models, base_weights, expert_weights, llama_config, load_checkpoint, save_model

# Otherwise Prefect tries for a minute after the tests to send the last log records to a server that has stopped.
os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
# Commands print what they wait for every ten seconds in a pipe; tests count lines, however slow the machine is.
os.environ.setdefault("EIGENMERGE_STATUS_SECONDS", "0")

# moto and ministack accept any credentials; these are recognizable, so that a test can search for them where they must
# not appear.
ACCESS_KEY = "PLANTEDACCESSKEY"
SECRET_KEY = "planted-secret-that-must-not-leak"


@dataclass(frozen=True)
class S3Root:
    """A new prefix in a new bucket, with the storage options to open it."""

    uri: str
    storage_options: dict[str, object]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server_process(command: list[str], port: int, environment: dict[str, str], folder: Path) -> Iterator[str]:
    """Start a server that listens on `port`, yield its URL, and stop the process afterwards."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[:3]} did not start: {log.read_text()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def s3_options(endpoint: str) -> dict[str, object]:
    return {"endpoint_url": endpoint, "key": ACCESS_KEY, "secret": SECRET_KEY, "region": "us-east-1"}


def fresh_s3_root(endpoint: str) -> S3Root:
    import fsspec

    options = s3_options(endpoint)
    bucket = f"test-{uuid.uuid4().hex[:16]}"
    fs = fsspec.filesystem("s3", endpoint_url=endpoint, key=ACCESS_KEY, secret=SECRET_KEY)
    fs.call_s3("create_bucket", Bucket=bucket)
    return S3Root(f"s3://{bucket}/some/prefix", options)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Prefect database with all migrations applied, which take a server ten seconds on a new home.

    All processes of a test run share one database.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    home = folder / "migrated-prefect-home"
    with FileLock(folder / "migrated-prefect-home.lock"):
        if not (home / "done").exists():
            environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
            upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            subprocess.run(
                upgrade, env=environment, capture_output=True, check=True, timeout=600
            )  # 10 s on an idle machine
            (home / "done").touch()
    return home / "prefect.db"


@pytest.fixture(scope="session")
def make_prefect_home(migrated_database: Path) -> Callable[[Path], Path]:
    """Create a PREFECT_HOME whose database needs no migration."""

    def make(home: Path) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(migrated_database, home / "prefect.db")
        return home

    return make


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of ministack: fast, with ranges, multipart uploads, conditional writes and batch deletes."""
    folder, port = tmp_path_factory.mktemp("ministack"), free_port()
    environment = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "SERVICES": "s3",
        "S3_PERSIST": "0",
        "LOG_LEVEL": "WARNING",
        "TMPDIR": str(folder),
    }
    with server_process([sys.executable, "-m", "ministack"], port, environment, folder) as url:
        yield url


@pytest.fixture(scope="session")
def moto_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server of moto: a second, slower implementation."""
    folder, port = tmp_path_factory.mktemp("moto"), free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with server_process(command, port, {}, folder) as url:
        yield url


@pytest.fixture(scope="session")
def hub_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a stand-in for the Hugging Face Hub; tests/hub_server.py says what it knows."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).parent / "hub_server.py"), str(port)]
    with server_process(command, port, {}, tmp_path_factory.mktemp("hub")) as url:
        yield url


@pytest.fixture
def no_hub_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token of this machine, and uploads by Git LFS, which the stand-in speaks."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def s3_root(s3_endpoint: str) -> S3Root:
    """A new bucket and prefix on ministack."""
    return fresh_s3_root(s3_endpoint)


@pytest.fixture
def moto_root(moto_endpoint: str) -> S3Root:
    """A new bucket and prefix on moto."""
    return fresh_s3_root(moto_endpoint)


@pytest.fixture
def faulty_s3(s3_endpoint: str, s3_root: S3Root) -> Iterator[tuple[FaultyProxy, S3Root]]:
    """A proxy that injects failures, and the prefix of `s3_root` with the options to reach it through the proxy."""
    with FaultyProxy(s3_endpoint) as proxy:
        yield proxy, S3Root(s3_root.uri, s3_options(proxy.endpoint))


@pytest.fixture
def make_models(tmp_path: Path) -> Callable[..., Models]:
    def make(num_experts: int = 3, dtype: torch.dtype = torch.float32, **sizes: int) -> Models:
        base = base_weights(**sizes)
        experts = [expert_weights(base, index) for index in range(num_experts)]
        config = llama_config(**sizes)
        folder = save_model(tmp_path / "base", {n: t.to(dtype) for n, t in base.items()}, config)
        places = [
            save_model(tmp_path / f"expert{i}", {n: t.to(dtype) for n, t in tensors.items()}, config)
            for i, tensors in enumerate(experts)
        ]
        return Models(tmp_path, folder, places, base, experts)

    return make


@pytest.fixture
def models(make_models: Callable[..., Models]) -> Models:
    return make_models()


@pytest.fixture(name="load_checkpoint")
def _load_checkpoint() -> Callable[[Path], dict[str, torch.Tensor]]:
    return load_checkpoint


@pytest.fixture(name="save_model")
def _save_model() -> Callable[..., Path]:
    return save_model


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., Any]:
    """Run the whole merge without Prefect, one shard after the other, and return the MergeResult.

    Takes a recipe as a mapping, a path or a Recipe, and the keywords of `merge_run`.
    """

    def run(recipe: Any, out: str | Path, store: str | Path | None = None, **keys: Any) -> Any:
        from eigenmerge.core.steps.merge_run import merge_run
        from eigenmerge.core.steps.read_recipe import read_recipe

        read = read_recipe(recipe)
        place = store or read.store or tmp_path / "store"
        return merge_run(read, str(out), store=str(place), **keys)

    return run
