"""Commands print nothing of Prefect and switch its telemetry off, with an embedded server and with the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

EIGENMERGE = Path(sys.executable).parent / "eigenmerge"


def user_environment(home: Path, **changes: str) -> dict[str, str]:
    """The environment of a user who has configured nothing of Prefect."""
    hidden = ("PREFECT_", "DO_NOT_TRACK", "EIGENMERGE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {**kept, "PREFECT_HOME": str(home / "prefect"), "EIGENMERGE_STORE": str(home / "store"), **changes}


def write_recipe(folder: Path) -> Path:
    for name in ("base", "math", "code"):
        (folder / name).mkdir()
        save_file({"q.weight": torch.randn(8, 8)}, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text("{}")
    recipe = folder / "recipe.yml"
    recipe.write_text(f"merge_method: ties\nbase_model: {folder}/base\nmodels: [{folder}/math, {folder}/code]\n")
    return recipe


def without_status(text: str) -> list[str]:
    """The lines without those that a pipe gets every ten seconds."""
    return [line for line in text.splitlines() if not line.startswith("eigenmerge merge: ")]


@pytest.mark.parametrize("server", ["embedded", "of the user"])
def test_a_merge_prints_its_summary_only(
    server: str, make_prefect_home: Callable[[Path], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make_prefect_home(tmp_path / "prefect")
    api = {} if server == "embedded" else {"PREFECT_API_URL": request.getfixturevalue("prefect_server")}
    done = subprocess.run(
        [EIGENMERGE, "merge", write_recipe(tmp_path), tmp_path / "out"],
        env=user_environment(tmp_path, **api), capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert (done.returncode, without_status(done.stderr)) == (0, [])
    first, *rest = done.stdout.splitlines()
    assert first.startswith("Merged 2 experts, 1 tensor, with ties in ")
    assert [line.split(":")[0] for line in rest] == ["  output", "  shards", "  read"]


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [EIGENMERGE, "merge", write_recipe(tmp_path), tmp_path / "out"],
        env=user_environment(tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api"), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = without_status(done.stderr)
    assert line.startswith("eigenmerge: error: no Prefect server answers at http://127.0.0.1:9/api")


def test_telemetry_is_off_unless_the_user_switches_it_on(tmp_path: Path) -> None:
    code = """
import json, os
from eigenmerge.deployments.prefect_settings import quiet_prefect
quiet_prefect()
from prefect.settings import get_current_settings
settings = get_current_settings()
print(json.dumps([settings.server.analytics_enabled, os.environ["DO_NOT_TRACK"], settings.logging.level]))
"""

    def observe(**changes: str) -> list[object]:
        environment = user_environment(tmp_path, **changes)
        return json.loads(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))

    assert observe() == [False, "1", "CRITICAL"]
    assert observe(PREFECT_SERVER_ANALYTICS_ENABLED="true", PREFECT_LOGGING_LEVEL="DEBUG") == [True, "1", "DEBUG"]
