"""Prefect settings of Eigenmerge's own commands: no telemetry and no log lines. Importing this file changes nothing."""

from __future__ import annotations

import os
import warnings

from ..tasks.worker_process import remove_terminal_handlers, silence_senders

# Commands print what users need themselves; `merge --verbose` sets the level to INFO.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLI_PROMPT": "false",
}


def quiet_prefect() -> None:
    """Set the variables of `QUIET` that the user's environment does not set, and silence Prefect's senders.

    Prefect reads the variables when it is imported, so call this first. Worker processes of Dask and Ray inherit them.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    silence_senders()


def keep_terminal_clean() -> None:
    """Import Prefect and remove its log handlers that write to the terminal, if its log is silent.

    Levels are not enough: loggers outside Prefect's settings, such as those of its services, of asyncio or of a client
    library, reach the terminal through the handlers that Prefect attaches to the root logger.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Prefect warns about a home that it cannot create
        import prefect.context  # pyright: ignore[reportUnusedImport]  # noqa: F401  (it attaches the handlers)

    remove_terminal_handlers()
