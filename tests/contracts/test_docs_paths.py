"""Files and folders that the documentation, or a docstring, names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("core", "tasks", "flows", "deployments", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
MODULES = sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))

LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
# core/numerics/, tests/contracts/test_layout.py, deployments/*_pool.json; not eigenmerge/core or my/core/x
PATH = re.compile(r"(?<![\w./:{-])((?:core|tasks|flows|deployments|tests|docs)/[\w*./-]*[\w*/])")
# storage/store.py is an error in a page: it must be core/storage/store.py
_FOLDERS = "|".join(path.name for path in (ROOT / "core").iterdir() if path.is_dir())
SHORT_PATH = re.compile(rf"(?<![\w./{{-])((?:{_FOLDERS})/[\w/]+\.py)\b")


def missing_links(page: Path, text: str) -> list[str]:
    return [target for target in LINK.findall(text) if not (page.parent / target).exists()]


def missing_paths(text: str) -> list[str]:
    return [path for path in PATH.findall(text) if not any(ROOT.glob(path))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    assert (missing_links(page, text), missing_paths(text), SHORT_PATH.findall(text)) == ([], [], [])


def test_decisions_are_listed_with_their_titles() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\* \[(\d+)\]\(([\w-]+\.md)\) (.+)$", (folder / "README.md").read_text(), re.MULTILINE)
    pages = sorted(page for page in folder.glob("*.md") if page.name != "README.md")
    titles = [(page.name, page.read_text().splitlines()[0]) for page in pages]
    assert [(target, f"# {number} {title}") for number, target, title in listed] == titles


def test_paths_in_source_files_exist() -> None:
    """Files only: a docstring may contain "tests/" or "core/" as an example of a folder."""
    suffixes = (".py", ".md", ".yaml", ".json", ".safetensors")
    missing = {
        name(module): found
        for module in MODULES
        if module != Path(__file__)
        and (found := [path for path in missing_paths(module.read_text()) if path.endswith(suffixes)])
    }
    assert missing == {}


def test_missing_paths_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert missing_links(page, "[a](b.md), [c](https://x.org/y.md), [d](#e), [f](.)") == ["b.md"]
    text = "`core/nowhere/x.py`, core/numerics/filters.py, docs/*.md, s3://bucket/core/x, eigenmerge/core/x"
    assert missing_paths(text) == ["core/nowhere/x.py"]
    assert SHORT_PATH.findall("`storage/store.py`, core/storage/store.py, merger/x.py") == ["storage/store.py"]
