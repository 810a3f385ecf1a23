"""Prefect's own server for one run, when the user has none.

Prefect starts such a server by itself, but a flow that is killed leaves it behind, and Ctrl-C reaches it before the
flow has reported its last state. Here it runs in its own session and ends when its standard input closes, which the
kernel does however the parent dies.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

STARTUP_SECONDS = 120.0


class EmbeddedServer:
    """Starts in the background at construction; `url()` waits until it answers."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        environment = {
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
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
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value():
        if server is not None:
            server.close()
        yield
        return
    server = server or EmbeddedServer()
    try:
        # In the environment too: worker processes (Dask, Ray) read it there, or each would start a server of its own.
        with temporary_settings({PREFECT_API_URL: server.url()}):
            os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value() or ""
            try:
                yield
            finally:
                del os.environ["PREFECT_API_URL"]
    finally:
        server.close()


def _serve(port: int) -> None:
    import uvicorn

    def leave_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)  # the database is SQLite in WAL mode: nothing is lost that a merge needs

    threading.Thread(target=leave_with_parent, daemon=True).start()
    uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
