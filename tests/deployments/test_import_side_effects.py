"""Importing Eigenmerge leaves the user's process alone: environment, Prefect settings, loggers, and their own flows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# The third-party packages are imported first, because importing them changes loggers and settings of its own.
IMPORT_EVERYTHING = """
import importlib, json, logging, os, pkgutil, signal, sys
import distributed, fsspec, matplotlib.pyplot, prefect, prefect_dask, pyarrow, s3fs, safetensors, torch, typer
import prefect.artifacts, prefect.events, prefect.deployments.runner, huggingface_hub
from prefect.settings import get_current_settings

def observe():
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)} | {"": logging.root}
    return {
        "environment": dict(os.environ),
        "settings": get_current_settings().model_dump(mode="json"),
        "loggers": {
            name: [logger.level, logger.propagate, logger.disabled, len(logger.handlers), len(logger.filters)]
            for name, logger in loggers.items()
        },
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "folder": os.getcwd(),
    }

before = observe()
names = []
for top in ("core", "tasks", "flows", "deployments"):
    package = importlib.import_module(f"eigenmerge.{top}")
    for found in pkgutil.walk_packages(package.__path__, f"eigenmerge.{top}."):
        if not found.name.endswith(("ray_runner", "__main__")):  # ray is an extra; __main__ runs the command
            importlib.import_module(found.name)
            names.append(found.name)
after = observe()
after["loggers"] = {
    name: values
    for name, values in after["loggers"].items()
    if name in before["loggers"] or name.startswith("eigenmerge") and values != [0, True, False, 0, 0]
}
print(json.dumps([before, after, names]))
"""

FLOW_OF_A_USER = """
from prefect import flow
from prefect.logging import get_run_logger
{imports}

@flow
def mine():
    get_run_logger().info("line of the user's flow")

mine()
"""


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment, check=True
    )


def user_environment(**changes: str) -> dict[str, str]:
    """The environment of a user who has configured nothing of Prefect."""
    hidden = ("PREFECT_", "DO_NOT_TRACK", "EIGENMERGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)} | changes


def test_importing_every_module_changes_nothing(tmp_path: Path) -> None:
    before, after, names = json.loads(
        run(IMPORT_EVERYTHING, user_environment(PREFECT_HOME=str(tmp_path))).stdout.splitlines()[-1]
    )
    assert {"eigenmerge.flows.merge", "eigenmerge.deployments.embedded_server", "eigenmerge.core.run"} <= set(names)
    assert before["settings"]["logging"]["level"] == "INFO"
    assert after == before


def test_a_users_own_flow_logs_as_without_eigenmerge(prefect_server: str, tmp_path: Path) -> None:
    environment = user_environment(PREFECT_HOME=str(tmp_path), PREFECT_API_URL=prefect_server)
    plain = run(FLOW_OF_A_USER.format(imports=""), environment).stderr
    merging = run(FLOW_OF_A_USER.format(imports="from eigenmerge.flows import merge"), environment).stderr
    assert "line of the user's flow" in plain and "Beginning flow run" in plain
    assert "line of the user's flow" in merging
    assert len(merging.splitlines()) == len(plain.splitlines())
