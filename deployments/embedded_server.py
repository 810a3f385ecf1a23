"""Prefect's own server for one run, when the user has none.

Prefect starts such a server by itself, but a flow that is killed leaves it behind, and Ctrl-C reaches it before the
flow has reported its last state. Here it runs in its own session and ends when its standard input closes, which the
kernel does however the parent dies.

Several may run at once on one database (SQLite, in Prefect's home): a lock lets only one at a time create or migrate
it. Without, half of the servers that found a fresh home together failed.
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
from collections.abc import Iterator
from pathlib import Path

STARTUP_SECONDS = 120.0


class EmbeddedServer:
    """Starts in the background at construction; `url()` waits until it answers."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        # The server inherits the bound socket: a port that were only found free could be another's when it is ready.
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
        """The API's address, once it is healthy."""
        import httpx

        deadline = time.monotonic() + STARTUP_SECONDS
        address = f"http://127.0.0.1:{self.port}/api"
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    return address
            time.sleep(0.05)
        raise RuntimeError(
            f"Prefect's embedded server did not start within {STARTUP_SECONDS:.0f} s; `prefect server start` shows"
            " why, and PREFECT_API_URL names a server of your own"
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def prefect_api(server: EmbeddedServer | None = None) -> Iterator[None]:
    """Inside, flows report to the user's server if one is configured, else to an embedded one."""
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    if PREFECT_API_URL.value():
        if server is not None:
            server.close()
        yield
        return
    server = server or EmbeddedServer()
    try:
        # In the environment too: worker processes (Dask, Ray) read it there, or each would start a server of its own.
        # No heartbeat: the server ends with the run, and a flow waits up to a second for the thread that sends it.
        with temporary_settings({PREFECT_API_URL: server.url(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value() or ""
            try:
                yield
            finally:
                del os.environ["PREFECT_API_URL"]
    finally:
        server.close()


def _serve(descriptor: int) -> None:
    import uvicorn
    from prefect.settings import PREFECT_HOME

    def leave_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)  # the database is SQLite in WAL mode: nothing is lost that a merge needs

    class OneStartsAtATime(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with _lock(PREFECT_HOME.value()):
                await super().startup(sockets)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error")
    OneStartsAtATime(config).run(sockets=[socket.socket(fileno=descriptor)])


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held by one process of this machine at a time, and let go by the kernel however that process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "eigenmerge-server.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
