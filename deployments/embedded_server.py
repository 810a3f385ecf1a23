"""A Prefect server for one run, where the user has not configured one.

Prefect can start such a server itself, but a killed flow leaves it running, and Ctrl-C ends it before the flow has
reported its last state. This one runs in its own session and exits when its standard input closes, which the kernel
does however the parent ends.

Several servers may use one database (SQLite, in PREFECT_HOME). A lock allows only one at a time to create or migrate
it; without the lock, half of the servers that started together on a new home failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

from ..core.errors import DeployError

STARTUP_SECONDS = 120.0


class EmbeddedServer:
    """A server process. The constructor starts it in the background; `url` waits until it answers."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        # The server inherits the bound socket, because another process could take a port that was only found free.
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.port: int = bound.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(bound.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                pass_fds=(bound.fileno(),),
            )

    def url(self) -> str:
        """Wait until the server is healthy and return the address of its API.

        Raises
        ------
        RuntimeError : the server ended, or did not answer within STARTUP_SECONDS
        """
        import httpx

        deadline = time.monotonic() + STARTUP_SECONDS
        address = f"http://127.0.0.1:{self.port}/api"
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    return address
            time.sleep(0.05)
        raise RuntimeError(
            f"the embedded Prefect server did not start within {STARTUP_SECONDS:.0f} s; `prefect server start` shows"
            " the reason. To use a running server, set PREFECT_API_URL"
        )

    def close(self) -> None:
        """End the server and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def prefect_api(server: EmbeddedServer | None = None) -> Generator[None]:
    """Make flows inside the block report to the server that the user configured, else to an embedded one.

    Parameters
    ----------
    server : an embedded server that is already starting; closed in any case

    Raises
    ------
    DeployError : the server that the user configured does not answer
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    if PREFECT_API_URL.value():
        if server is not None:
            server.close()
        _check_reachable(PREFECT_API_URL.value() or "")
        yield
        return
    server = server or EmbeddedServer()
    try:
        # Also set in the environment, where worker processes of Dask and Ray read it; without it each would start a
        # server of its own. No heartbeat: the server ends with the run, and at its end a flow waits up to a second for
        # the thread that sends heartbeats.
        with temporary_settings({PREFECT_API_URL: server.url(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value() or ""
            try:
                yield
            finally:
                del os.environ["PREFECT_API_URL"]
    finally:
        server.close()


def _check_reachable(api_url: str) -> None:
    import httpx
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if isinstance(error, httpx.TransportError):  # any answer, such as 401, is one of a server
        raise DeployError(
            f"no Prefect server answers at {api_url} ({error}); start it, correct PREFECT_API_URL, or unset"
            " PREFECT_API_URL to use an embedded server"
        )


def _serve(descriptor: int) -> None:
    import uvicorn
    from prefect.settings import PREFECT_HOME

    def exit_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)  # safe for the database, which is SQLite in WAL mode

    class ServerWithLockedStartup(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with _startup_lock(PREFECT_HOME.value()):
                await super().startup(sockets)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error")
    ServerWithLockedStartup(config).run(sockets=[socket.socket(fileno=descriptor)])


@contextlib.contextmanager
def _startup_lock(folder: Path) -> Generator[None]:
    """Hold a lock that one process of this machine can hold at a time. The kernel releases it when the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "eigenmerge-server.lock").open("w") as file:
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
