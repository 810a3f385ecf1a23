"""Folders, packages and file sizes follow the rules that docs/architecture.md states."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
files_page = runpy.run_path(str(ROOT / "tests" / "contracts" / "module_map.py"))["files_page"]
PACKAGES = ("core", "tasks", "flows", "deployments")
MAX_LINES = 400
MAX_FILES = 16


def source_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_page_of_files_is_up_to_date() -> None:
    page = (ROOT / "docs" / "files.md").read_text()
    assert page == files_page(), "docs/files.md is out of date: run python tests/contracts/module_map.py"


def test_page_of_files_lists_every_file() -> None:
    """A new folder must be added to FOLDERS in module_map.py."""
    page = (ROOT / "docs" / "files.md").read_text()
    listed = set(re.findall(r"^\| \[`\w+\.py`\]\(\.\./([\w/]+\.py)\)", page, re.MULTILINE))
    expected = {str(path.relative_to(ROOT)) for path in source_files() if path.name != "__init__.py"}
    assert listed == expected | {"deployments/face/__init__.py"}


def test_every_subpackage_is_installed() -> None:
    """A folder that pyproject.toml does not list works in an editable install but is missing from a wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = {folder: name for name, folder in settings["package-dir"].items()}
    folders = {str(path.parent.relative_to(ROOT)) for path in source_files()}
    packages = {mapped.get(folder, "eigenmerge." + folder.replace("/", ".")) for folder in folders}
    assert sorted(packages) == sorted(settings["packages"])


def test_no_file_is_too_long() -> None:
    """A file of more than 400 lines is to be divided."""
    long = [(str(p.relative_to(ROOT)), n) for p in source_files() if (n := len(p.read_text().splitlines())) > MAX_LINES]
    assert long == []


def test_no_folder_is_crowded() -> None:
    """At most 16 Python files per folder. `methods` is a plain collection: one file per method."""
    sizes = Counter(str(path.parent.relative_to(ROOT)) for path in source_files() if path.name != "__init__.py")
    assert {folder: size for folder, size in sizes.items() if size > MAX_FILES} == {
        "core/numerics/methods": sizes["core/numerics/methods"]
    }


def test_no_catch_all_names() -> None:
    names = {path.stem for path in source_files()}
    assert names.isdisjoint({"utils", "helpers", "common", "misc", "util", "helper"})


def test_top_level_has_no_other_entries() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    top = {line.split("/")[0] for line in tracked if line}
    expected = {"pyproject.toml", "flows", "tasks", "core", "deployments", "tests", "docs"}
    expected |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"}
    assert {name for name in top - expected if not name.startswith(".")} == set()
