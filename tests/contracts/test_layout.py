"""The layout of the repository is what the documentation says it is."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
page_with_map = runpy.run_path(str(ROOT / "tests" / "contracts" / "module_map.py"))["page_with_map"]
PACKAGES = ("core", "tasks", "flows", "deployments")
MAX_LINES = 400


def source_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_architecture_map_is_true() -> None:
    """docs/architecture.md lists every file with its purpose; `python tests/contracts/module_map.py` writes it."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page == page_with_map(page), "out of date: run python tests/contracts/module_map.py"
    listed = set(re.findall(r"^\| `((?:core|tasks|flows|deployments)/[\w/]+\.py)`", page, re.MULTILINE))
    assert listed == {str(path.relative_to(ROOT)) for path in source_files() if path.name != "__init__.py"}


def test_every_subpackage_is_installed() -> None:
    """A folder that pyproject does not list works in an editable install and is missing from a wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = {folder: name for name, folder in settings["package-dir"].items()}
    folders = {str(path.parent.relative_to(ROOT)) for path in source_files()}
    packages = {mapped.get(folder, "eigenmerge." + folder.replace("/", ".")) for folder in folders}
    assert sorted(packages) == sorted(settings["packages"])


def test_no_file_holds_two_ideas() -> None:
    """Past 400 lines a file is two files."""
    long = [(str(p.relative_to(ROOT)), n) for p in source_files() if (n := len(p.read_text().splitlines())) > MAX_LINES]
    assert long == []


def test_no_folder_is_crowded() -> None:
    """Beyond about fifteen files a folder holds several ideas; `methods` is a plain collection."""
    sizes = Counter(str(path.parent.relative_to(ROOT)) for path in source_files() if path.name != "__init__.py")
    assert {folder: size for folder, size in sizes.items() if size > 16} == {
        "core/numerics/methods": sizes["core/numerics/methods"]
    }


def test_no_catch_all_names() -> None:
    names = {path.stem for path in source_files()}
    assert names.isdisjoint({"utils", "helpers", "common", "misc", "util", "helper"})


def test_top_level_is_as_agreed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    top = {line.split("/")[0] for line in tracked if line}
    agreed = {"pyproject.toml", "flows", "tasks", "core", "deployments", "tests", "docs"}
    agreed |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"}
    assert {name for name in top - agreed if not name.startswith(".")} == set()
