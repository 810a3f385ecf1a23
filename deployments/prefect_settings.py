"""Prefect without telemetry and without log lines, unless the user's environment says otherwise."""

from __future__ import annotations

import os

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # our own output says what a user needs; --verbose lowers it
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLI_PROMPT": "false",
}


def quiet_prefect() -> None:
    """No telemetry and no log lines unless the user's environment says otherwise. Call before importing prefect."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
