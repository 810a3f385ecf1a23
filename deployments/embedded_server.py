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
import gc
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..core.errors import DeployError
from ..core.formats.redaction import redact
from .loopback import loopback_without_proxy
from .server_database import cached_databases, database_file, prepared_database

STARTUP_SECONDS = 120.0
_REACH_SECONDS = 5.0
_USED_ROUTES = frozenset({"/flows", "/flow_runs", "/task_runs", "/logs", "/artifacts", "/events", "/admin"})


class EmbeddedServer:
    """A server process. The constructor starts it in the background; `url` waits until it answers.

    Raises
    ------
    OSError : Prefect's home, where the server has its database, cannot be written
    """

    def __init__(self) -> None:
        _check_home()
        environment = {
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            **loopback_without_proxy(),
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

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def url(self) -> str:
        """Wait until the server is healthy and return the address of its API.

        Raises
        ------
        RuntimeError : the server ended, or did not answer within STARTUP_SECONDS
        """
        import httpx

        deadline = time.monotonic() + STARTUP_SECONDS
        address = f"http://127.0.0.1:{self.port}/api"
        with httpx.Client(trust_env=False, timeout=5) as client:  # no proxy
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{address}/health").status_code == 200:
                        return address
                time.sleep(0.05)
        ended = self._process.poll()
        how = f"did not start within {STARTUP_SECONDS:.0f} s" if ended is None else f"ended with exit code {ended}"
        raise RuntimeError(
            f"the embedded Prefect server {how}; `prefect server start` shows the reason. To use a running server, set"
            " PREFECT_API_URL"
        )

    def close(self) -> None:
        """End the server and wait until it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def start_embedded_server() -> Generator[EmbeddedServer]:
    """Start a server in the background and end it after the block."""
    server = EmbeddedServer()
    try:
        yield server
    finally:
        server.close()


def configured_api() -> str:
    """Return the API address of the Prefect server that the environment or a profile names, or ""."""
    if address := os.environ.get("PREFECT_API_URL"):
        return address
    if "prefect" not in sys.modules and not _may_have_profile():
        return ""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() or ""


def _may_have_profile() -> bool:
    """Return whether a profile of Prefect may exist, whose reading takes the seconds of importing Prefect."""
    with contextlib.suppress(OSError, RuntimeError):
        return (_prefect_home() / "profiles.toml").exists()
    return False


def _prefect_home() -> Path:
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def _check_home() -> None:
    """Check that the server can write its database, which it would otherwise report after seconds."""
    try:
        home = _prefect_home()
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        raise OSError(f"Prefect's home cannot be written: {error}") from None


@contextlib.contextmanager
def prefect_api(server: EmbeddedServer | None = None) -> Generator[None]:
    """Make flows inside the block report to `server`, or to the server that the user has configured if it is None.

    Raises
    ------
    DeployError : the server that the user configured does not answer
    RuntimeError : `server` does not start
    """
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    if server is None:
        with _changed_environment(loopback_without_proxy()):
            _check_reachable(PREFECT_API_URL.value() or "")
            yield
        return
    address = server.url()
    # Also set in the environment, where worker processes of Dask and Ray read it; without it each would start a
    # server of its own. No heartbeat: the server ends with the run, and at its end a flow waits up to a second for
    # the thread that sends heartbeats. The client does not ask for the server's version, which is that of this process,
    # nor for tokens against forged requests, which this server does not use.
    environment = {**loopback_without_proxy(), "PREFECT_API_URL": address}
    with (
        _changed_environment(environment),
        temporary_settings(
            {
                PREFECT_API_URL: address,
                PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
                PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
                PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
            }
        ),
    ):
        yield


@contextlib.contextmanager
def _changed_environment(changes: Mapping[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_listens(api_url: str) -> None:
    """Check that a process listens where the user's server should be, without the seconds that Prefect's client takes.

    Raises
    ------
    DeployError : no connection
    """
    parts = urlsplit(api_url)
    try:
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        raise _no_server(api_url, "not an address; expected one such as http://host:4200/api") from None
    if not host:
        raise _no_server(api_url, "not an address; expected one such as http://host:4200/api")
    if proxy_bypass(host) or not getproxies():
        try:
            socket.create_connection((host, port), timeout=_REACH_SECONDS).close()
        except OSError as error:
            raise _no_server(api_url, error) from None


def _no_server(api_url: str, error: object) -> DeployError:
    return DeployError(
        f"no Prefect server answers at {redact(api_url)} ({error}); start it, correct PREFECT_API_URL, or unset"
        " PREFECT_API_URL to use an embedded server"
    )


def _check_reachable(api_url: str) -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    patience: dict[Any, Any] = {PREFECT_CLIENT_MAX_RETRIES: 1, PREFECT_API_REQUEST_TIMEOUT: _REACH_SECONDS}
    with temporary_settings(patience), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if isinstance(error, httpx.TransportError | httpx.InvalidURL | httpx.UnsupportedProtocol):
        raise _no_server(api_url, error)  # any answer, such as 401, is one of a server


def _serve(descriptor: int) -> None:
    gc.disable()  # while Prefect is imported: a fifth of that time
    import uvicorn
    from prefect.settings import (
        PREFECT_API_BLOCKS_REGISTER_ON_START,
        PREFECT_API_DATABASE_CONNECTION_URL,
        PREFECT_API_DATABASE_MIGRATE_ON_START,
        PREFECT_HOME,
        PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION,
        temporary_settings,
    )

    def exit_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)  # safe for the database, which is SQLite in WAL mode

    class ServerWithLockedStartup(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            file = database_file(_text(PREFECT_API_DATABASE_CONNECTION_URL.value()))
            with _startup_lock(PREFECT_HOME.value()), prepared_database(file, cached_databases()) as is_ready:
                # The last one: whether the types of blocks have changed, for which Prefect imports its extensions.
                work = (
                    PREFECT_API_DATABASE_MIGRATE_ON_START,
                    PREFECT_API_BLOCKS_REGISTER_ON_START,
                    PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION,
                )
                with temporary_settings(dict.fromkeys(work, False) if is_ready else {}):
                    await super().startup(sockets)
            gc.freeze()  # what is imported stays
            gc.enable()

    threading.Thread(target=exit_with_parent, daemon=True).start()
    _put_used_routes_first()
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error")
    ServerWithLockedStartup(config).run(sockets=[socket.socket(fileno=descriptor)])


def _put_used_routes_first() -> None:
    """Put the routes that a run uses before Prefect's others.

    FastAPI builds a group of routes when a request is first compared with it, in order: a third of a second for all of
    them. Prefect has no public call for the order; where its internals change, all groups are built again.
    """
    from prefect.server.api import server

    def is_unused(router: Any) -> bool:
        return router.prefix not in _USED_ROUTES

    with contextlib.suppress(Exception):
        server.API_ROUTERS = tuple(sorted(server.API_ROUTERS, key=is_unused))  # otherwise in their order


def _text(value: Any) -> str:
    """Return the text of a setting, which may be a secret; "" for None."""
    return "" if value is None else str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)


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
