"""Every method has a page and a line in docs/methods.md; the page names its parameters, aliases and source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.recipe.presets import PRESETS

DOCS = Path(__file__).resolve().parents[2] / "docs"
INDEX = (DOCS / "methods.md").read_text()
PAGES = {path.stem: path.read_text() for path in (DOCS / "methods").glob("*.md")}
NOT_METHODS = {"svc"}  # a calibration


def test_every_method_has_a_page_and_a_line() -> None:
    assert set(PAGES) == set(built_in_methods()) | NOT_METHODS
    listed = re.findall(r"^\| \[(\w+)\]\(methods/(\w+)\.md\) \|", INDEX, re.MULTILINE)
    assert all(name == page for name, page in listed)
    assert sorted(name for name, _ in listed) == sorted(PAGES), "every page must be listed once"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_has_all_sections(name: str) -> None:
    page = PAGES[name]
    assert page.startswith(f"# {name}")
    for part in ("**Formula.**", "**When to use.**", "**Parameters.**", "**Cost.**", "**Source.**"):
        assert part in page, f"{name}.md has no section {part}"


@pytest.mark.parametrize("name", sorted(built_in_methods()))
def test_a_page_names_every_parameter_and_the_source(name: str) -> None:
    method, page = built_in_methods()[name], PAGES[name]
    for model in (method.Parameters, method.Expert):
        for field, facts in model.model_fields.items():
            parameter = facts.alias or field
            # parameters of a family are described on the page that this page refers to ("as `ties`")
            described = page + "".join(
                PAGES[other] for other in re.findall(r"(?:as|of) `(\w+)`", page, re.I) if other in PAGES
            )
            assert re.search(rf"`{parameter}\b", described), f"{name}.md does not name {parameter}"
    for number in re.findall(r"arXiv:(\d{4}\.\d{5})", method.source):
        assert number in page, f"{name}.md does not name {number}"
    for alias in method.aliases:
        assert f"`{alias}`" in page, f"{name}.md does not name its alias {alias}"


def test_presets_are_listed() -> None:
    for name, preset in PRESETS.items():
        assert f"| `{name}` | " in INDEX
        assert next(iter(preset.methods)) in INDEX
