"""README.md works on PyPI, where relative links lead nowhere, and links lead to the right pages of the site."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:img|a)\s[^>]*(?:src|href)=\"([^\"]+)\"")


def load(name: str) -> ModuleType:
    """Import a file of the site, which is no package."""
    specification = importlib.util.spec_from_file_location(name, ROOT / f"docs/site/{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def links() -> ModuleType:
    """The hook of MkDocs."""
    return load("links")


def test_links_and_images_of_the_readme_are_absolute_and_exist(links: ModuleType) -> None:
    targets = [link or source for link, source in LINK.findall((ROOT / "README.md").read_text())]
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith("https://")] == []
    own = [target for target in targets if target.startswith(links.REPOSITORY)]
    files = [re.sub(r"^(blob|tree)/main/", "", target.removeprefix(f"{links.REPOSITORY}/")) for target in own]
    assert own and [name for name in files if not (ROOT / name.partition("#")[0]).exists()] == []


def test_addresses_of_the_project_are_in_its_metadata(links: ModuleType) -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Homepage"] == links.REPOSITORY
    assert {"Documentation", "Changelog", "Issues"} <= set(urls)
    assert all(address.startswith(links.REPOSITORY) for address in urls.values())


@pytest.mark.parametrize(
    ("target", "origin", "page", "expected"),
    [
        ("store.md#s3", "docs/operations.md", "operations.md", "store.md#s3"),
        ("../store.md", "docs/guides/tune.md", "guides/tune.md", "../store.md"),
        ("../CHANGELOG.md", "docs/files.md", "files.md", "changelog.md"),
        ("../core/run.py", "docs/files.md", "files.md", "{repository}/blob/main/core/run.py"),
        ("../../tests", "docs/guides/tune.md", "guides/tune.md", "{repository}/tree/main/tests"),
        ("decisions/", "docs/architecture.md", "architecture.md", "decisions/README.md"),
        ("{repository}/blob/main/docs/sweep.md", "README.md", "index.md", "sweep.md"),
        ("{repository}/tree/main/docs/decisions", "README.md", "index.md", "decisions/README.md"),
        ("https://arxiv.org/abs/2606.07289", "README.md", "index.md", "https://arxiv.org/abs/2606.07289"),
        ("#here", "docs/store.md", "store.md", "#here"),
    ],
)
def test_a_link_of_the_site(links: ModuleType, target: str, origin: str, page: str, expected: str) -> None:
    found = links.site_link(target.format(repository=links.REPOSITORY), origin, page)
    assert found == expected.format(repository=links.REPOSITORY)


def test_code_is_not_a_link(links: ModuleType) -> None:
    text = "[a](../core/run.py)\n```\n[b](../core/run.py)\n```\n"
    assert links.adapt_links(text, "docs/files.md", "files.md").count(links.REPOSITORY) == 1


def test_the_meaning_of_a_parameter_is_not_shown_as_its_type() -> None:
    text = (
        "Do it.\n\nParameters\n----------\nplace : directory or URI\n    that is empty\nstorage_options : mapping\n"
        "    As for `Store`\n\nRaises\n------\nStoreError : no answer\n\nReturns\n-------\nTensor, (K, K)\n"
    )
    assert load("docstrings").rewrite(text) == text.replace(
        "place : directory or URI\n    that", "place\n    directory or URI\n    that"
    ).replace("StoreError : no answer", "StoreError\n    no answer")


def test_every_page_has_a_place_in_the_navigation() -> None:
    """`make docs` says so too, but is not part of `make test`. The folders methods/ and decisions/ are listed whole."""
    listed = set(re.findall(r"^ +- ([\w/-]+\.md)$", (ROOT / "docs/site/mkdocs.yml").read_text(), re.MULTILINE))
    generated = {"index.md", "changelog.md", "contributing.md", *(page for page in listed if "reference/" in page)}
    docs = ROOT / "docs"
    assert listed - generated == {
        path.relative_to(docs).as_posix() for path in (*docs.glob("*.md"), *docs.glob("guides/*.md"))
    }
