"""`--help` and `--version` import no heavy package."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import cast

import pytest
import typer.main

from eigenmerge.deployments.cli.app import app

HEAVY = [
    "torch",
    "prefect",
    "pydantic",
    "pyarrow",
    "fsspec",
    "s3fs",
    "safetensors",
    "psutil",
    "filelock",
    "numpy",
    "yaml",
    "httpx",
]


def every_command() -> list[list[str]]:
    """The words of every command and group, as typer has them registered."""

    def below(command: object, words: list[str]) -> list[list[str]]:
        children = cast("dict[str, object]", getattr(command, "commands", {}))
        return [words, *(found for name, child in children.items() for found in below(child, [*words, name]))]

    return below(typer.main.get_command(app), [])


def run_and_list_modules(arguments: list[str]) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the heavy packages that the command imported."""
    code = f"""
import json, sys
from eigenmerge.deployments.cli.app import main
sys.argv = ["eigenmerge", *{arguments!r}]
try:
    main()
except SystemExit as stop:
    code = stop.code
else:
    code = 0
print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    exit_code, imported = json.loads(done.stderr.splitlines()[-1])
    return exit_code, done.stdout, imported


def test_every_command_is_listed() -> None:
    names = {" ".join(words) for words in every_command()}
    assert {"", "merge", "plan", "inspect", "methods", "verify", "deploy", "announce", "cache gc", "cache du"} <= names


@pytest.mark.parametrize("words", every_command(), ids=lambda words: " ".join(words) or "eigenmerge")
def test_help_imports_no_heavy_package(words: list[str]) -> None:
    code, output, imported = run_and_list_modules([*words, "--help"])
    assert (code, imported) == (0, [])
    assert " ".join(["Usage: eigenmerge", *words]) in output


def test_version_imports_no_heavy_package() -> None:
    code, output, imported = run_and_list_modules(["--version"])
    assert (code, imported) == (0, [])
    assert output.startswith("eigenmerge ")


def test_help_after_arguments() -> None:
    assert "Usage: eigenmerge plan" in run_and_list_modules(["plan", "recipe.yml", "--help"])[1]
