"""A merge on a Dask cluster of separate processes that die: one clear line, nothing half-written, and it is resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")

from eigenmerge.core.coordination.stop import StopSignal  # noqa: E402
from eigenmerge.core.errors import InterruptedRunError, WorkerError  # noqa: E402
from eigenmerge.core.steps.collect_garbage import collect_garbage  # noqa: E402
from eigenmerge.core.storage.store import Store  # noqa: E402
from eigenmerge.deployments.embedded_server import EmbeddedServer  # noqa: E402
from eigenmerge.tasks.runners import dask_runner, dask_watch  # noqa: E402
from eigenmerge.tasks.runners.dask_runner import DaskRunner  # noqa: E402
from eigenmerge.tasks.runners.dask_watch import DaskWatch  # noqa: E402

from ..conftest import free_port  # noqa: E402
from .processes import last_shard_claimed, num_parts, start, wait_until  # noqa: E402

DASK = str(Path(sys.executable).parent / "dask")
FILES = ("model.safetensors", "eigenmerge_manifest.json", "eigenmerge_report.html", "README.md", "config.json")


@dataclass(frozen=True)
class Cluster:
    """A scheduler and its workers, each with its nanny in a process group of its own."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]

    def signal(self, which: str, number: signal.Signals) -> None:
        for process in [self.scheduler] if which == "scheduler" else self.workers[: 1 if which == "worker" else None]:
            os.killpg(process.pid, number)


@contextmanager
def dask_cluster(server: str, folder: Path, workers: int = 2, **environment: str) -> Iterator[Cluster]:
    folder.mkdir(exist_ok=True)
    address = f"tcp://127.0.0.1:{free_port()}"
    variables = {**os.environ, "PREFECT_API_URL": server, "OMP_NUM_THREADS": "1", **environment}

    def launch(stack: ExitStack, *arguments: str) -> subprocess.Popen[bytes]:
        command = [DASK, *arguments, "--no-dashboard"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            command, env=variables, cwd=folder, stdout=quiet, stderr=quiet, start_new_session=True
        )
        stack.callback(process.wait)
        stack.callback(end_group, process)
        return process

    with ExitStack() as stack:
        scheduler = launch(stack, "scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2])
        started = [launch(stack, "worker", address, "--nthreads", "1") for _ in range(workers)]
        with distributed.Client(address, timeout=120) as client:
            if workers:
                client.wait_for_workers(workers, timeout=120)
        yield Cluster(address, scheduler, started)


def end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def recipe(make_models: Callable[..., Any]) -> Path:
    return make_models(num_experts=3, layers=2, hidden=384).write_recipe("swudi_a")


def merge_arguments(recipe: Path, out: Path, store: Path, address: str) -> list[str | Path]:
    return ["merge", recipe, out, "--store", store, "--runner", "dask", "--runner-address", address]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("which", "number", "says", "seconds"),
    [
        ("scheduler", signal.SIGKILL, "ended, or the connection to it was lost", 60),
        ("scheduler", signal.SIGTERM, "ended, or the connection to it was lost", 60),
        ("scheduler", signal.SIGSTOP, "has not answered for 45 s", 300),
        ("all workers", signal.SIGKILL, "has had no workers for 45 s", 200),
    ],
)
def test_a_cluster_that_dies(
    recipe: Path,
    pipeline: Callable[..., Any],
    prefect_server: str,
    tmp_path: Path,
    which: str,
    number: signal.Signals,
    says: str,
    seconds: float,
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    with dask_cluster(prefect_server, tmp_path / "first") as cluster:
        with last_shard_claimed(recipe, store):
            process = start(merge_arguments(recipe, out, store, cluster.address), prefect_server)
            wait_until(lambda: num_parts(store) >= 2, 200, process)
            cluster.signal(which, number)
            killed = time.monotonic()
            _, errors = process.communicate(timeout=seconds)
        print(f"ended after {time.monotonic() - killed:.1f} s")
    assert process.returncode == 1, errors
    (line,) = errors.strip().splitlines()
    assert line.startswith(f"eigenmerge: error: the Dask scheduler at {cluster.address} ") and says in line
    assert "finished shards are kept" in line and "run the same command again to resume" in line
    assert not list(out.glob("*"))
    finished = num_parts(store)
    assert finished >= 2

    with dask_cluster(prefect_server, tmp_path / "second") as cluster:
        process = start([*merge_arguments(recipe, out, store, cluster.address), "--json"], prefect_server)
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert f'"shards_reused": {finished}' in output
    pipeline(recipe, tmp_path / "threads", store=str(tmp_path / "other"))
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()
    collect_garbage(Store(str(store)))
    assert not list(store.rglob("*.partial")), "what killed workers were writing"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_and_a_killed_prefect_server(
    recipe: Path,
    pipeline: Callable[..., Any],
    make_prefect_home: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run is finished, with a warning about the server."""
    monkeypatch.setenv("PREFECT_HOME", str(make_prefect_home(tmp_path / "prefect")))
    store, out = tmp_path / "store", tmp_path / "out"
    server = EmbeddedServer()
    try:
        url = server.url()
        with dask_cluster(url, tmp_path / "cluster") as cluster:
            with last_shard_claimed(recipe, store):
                process = start(merge_arguments(recipe, out, store, cluster.address), url)
                wait_until(lambda: num_parts(store) >= 2, 200, process)
                server._process.kill()
                cluster.signal("worker", signal.SIGKILL)
            output, errors = process.communicate(timeout=300)
    finally:
        server.close()
    assert process.returncode == 0, errors
    assert "Traceback" not in output + errors
    assert "Prefect's server did not answer" in output + errors
    pipeline(recipe, tmp_path / "threads", store=str(tmp_path / "other"))
    for name in FILES:
        if name != "README.md":  # the warning is in the model card
            assert (out / name).read_bytes() == (tmp_path / "threads" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_scheduler_that_lacks_eigenmerge(
    recipe: Path, command: Callable[..., Any], prefect_server: str, tmp_path: Path
) -> None:
    block = "import sys; sys.modules['eigenmerge'] = None\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(block)
    with dask_cluster(prefect_server, tmp_path / "dask", workers=0, PYTHONPATH=str(tmp_path / "site")) as cluster:
        done = command(*merge_arguments(recipe, tmp_path / "out", tmp_path / "store", cluster.address))
    assert done.code == 2 and "cannot import eigenmerge" in done.err and len(done.err.splitlines()) == 1


def test_an_address_that_nobody_listens_at(models: Any, command: Callable[..., Any], tmp_path: Path) -> None:
    import dask

    address = f"tcp://127.0.0.1:{free_port()}"
    arguments = merge_arguments(models.write_recipe("swudi_a"), tmp_path / "out", tmp_path / "store", address)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):  # 30 s by default
        done = command(*arguments)
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert f"no scheduler answers at '{address}'" in done.err and "`dask scheduler` prints" in done.err
    assert not list((tmp_path / "out").glob("*"))


def test_the_watch_sees_that_the_workers_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_watch, "_ASK_EVERY_SECONDS", 0.02)
    with distributed.LocalCluster(n_workers=1, dashboard_address=None, processes=False) as cluster:
        client = cluster.get_client()
        watch = DaskWatch(client, "tcp://a", patience=1.0)

        def check_for(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                watch.check()
                time.sleep(0.01)

        check_for(1.5)
        cluster.scale(0)
        with pytest.raises(WorkerError, match="the Dask scheduler at tcp://a has had no workers for 1 s; finished"):
            check_for(30)


def test_a_pause_of_this_process_is_no_silence_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_watch, "_LONGEST_PAUSE_SECONDS", 0.2)
    with distributed.LocalCluster(n_workers=1, dashboard_address=None, processes=False) as cluster:
        watch = DaskWatch(cluster.get_client(), "tcp://a", patience=0.5)
        time.sleep(1.0)
        watch.check()


def test_a_result_that_is_lost_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard was finished, and its worker died before the result was fetched."""
    from prefect_dask.task_runners import PrefectDaskFuture

    async def start_worker(address: str) -> Any:
        return await distributed.Worker(address, nthreads=1)

    monkeypatch.setattr(dask_watch, "_ASK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(dask_runner, "DaskWatch", partial(DaskWatch, patience=1.0))
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, processes=False) as cluster:
        worker = cluster.sync(start_worker, cluster.scheduler_address)
        with DaskRunner(1, cluster.scheduler_address, "cpu") as runner:
            future = PrefectDaskFuture(uuid4(), runner._runner.client.submit(pow, 2, 3))
            assert runner.result(future, StopSignal()) == 8
            cluster.sync(worker.close)
            stop = StopSignal()
            stop.stop("SIGTERM")
            with pytest.raises(InterruptedRunError, match="stopped by SIGTERM"):
                runner.result(future, stop)
            with pytest.raises(WorkerError, match="has had no workers for 1 s; finished"):
                runner.result(future, StopSignal())
